# SPDX-License-Identifier: Apache-2.0
"""The sections of a run's tables, which --section selects."""

from typing import Final

ALL: Final = "all"
SECTIONS: Final = {
    "stages": "the steps of D, without the weight of ipitrace's programs",
    "exits": "VM exits per IPI, and the cycles from exit to entry",
    "paths": "the paths of the IPIs",
    "events": "tracepoints per IPI",
    "observer": "what watching costs, and the clock",
    "losses": "losses, and all notes",
    ALL: "all of these",
}
"""The name of each section, and what it contains."""
