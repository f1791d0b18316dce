# SPDX-License-Identifier: Apache-2.0
"""What live tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ENVIRONMENT
from host_state import HostState
from private import private_folder


@pytest.fixture
def host_is_left_as_it_was() -> Iterator[None]:
    """Nothing is mounted, loaded or switched on after the test that was not before it."""
    before = HostState.now()
    yield
    assert before.mounts <= HostState.now().mounts
    before.assert_restored()


@pytest.fixture
def fresh_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, for this process and for commands: BPF programs must be compiled."""
    with private_folder() as folder:
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        monkeypatch.setitem(ENVIRONMENT, "XDG_CACHE_HOME", str(folder))
        yield folder / "ipitrace"
