# SPDX-License-Identifier: Apache-2.0
"""What tests of comparisons share."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from compared import host, record
from comparisons import exits_of, noisy, row_of, run_of, steady


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Recordings of a steady host: base, as it was again, and patched ones."""
    root = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(3)
    through = {"exits": [exits_of(0.0)] * 8, "paths": [{"exitless": 1.0}] * 8}
    runs = {
        "noise": host(run_of(row_of("unicast-running", noisy(rng, 8, 0.1)))),
        "exitless": host(steady(**through), kernel_release="6.1"),
        "base": host(steady(), kernel_release="6.1"),
        "same": host(steady(), kernel_release="6.1"),
        "slow": host(steady(factor=1.1), kernel_release="6.2"),
        "fast": host(steady(factor=0.5, exits=[exits_of(0.0)] * 8), kernel_release='6.2 "x"'),
        "few": host(steady(3), kernel_release="6.1"),
        "other": host(steady(), kernel_release="6.1", smt="on"),
    }
    return {name: record(root / name, run) for name, run in runs.items()}
