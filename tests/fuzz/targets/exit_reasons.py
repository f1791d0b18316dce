# SPDX-License-Identifier: Apache-2.0
"""Exit reasons as tracepoints and recordings have them."""

from ipitrace.words.exit_reasons import reason_name

from ..pieces import Pieces


def fuzz(data: bytes) -> None:
    pieces = Pieces(data)
    assert reason_name(pieces.number(), pieces.number()).isprintable()
