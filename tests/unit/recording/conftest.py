# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from recordings import make_recording, some_run


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    make_recording(tmp_path / "r", run=some_run(started_at="2026-02-03T04:05:06+00:00"))
    return tmp_path / "r"
