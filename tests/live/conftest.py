# SPDX-License-Identifier: Apache-2.0
"""What live tests share."""

from collections.abc import Iterator

import pytest
from host_state import HostState


@pytest.fixture
def host_is_left_as_it_was() -> Iterator[None]:
    """Nothing is mounted, loaded or switched on after the test that was not before it."""
    before = HostState.now()
    yield
    assert before.mounts <= HostState.now().mounts
    before.assert_restored()
