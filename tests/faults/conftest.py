# SPDX-License-Identifier: Apache-2.0
"""Faults that are really caused. After each the host must be as it was before."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from host_state import HostState
from place import Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """After the test no BPF object, mount, tracefs instance or temporary file is left."""
    made = Place(tmp_path / "here", tmp_path / "tmp")
    made.cwd.mkdir()
    made.temporary.mkdir()
    before = HostState.now()
    yield made
    before.assert_restored()
    assert list(made.temporary.iterdir()) == []
