# SPDX-License-Identifier: Apache-2.0
"""With more descriptors than select(2) knows: `watch` of a thousand VMs holds as many."""

import os
import resource
import time
from collections.abc import Iterator

import pytest

from ipitrace.base.signals import StopRequest
from ipitrace.host.child import run_bounded

_FD_SETSIZE = 1024


@pytest.fixture
def _many() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * _FD_SETSIZE
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"no more than {hard} descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    held = [os.open(os.devnull, os.O_RDONLY)]
    while held[-1] <= _FD_SETSIZE:
        held.append(os.dup(held[0]))
    yield
    for fd in held:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("_many")
def test_a_stop_is_waited_for() -> None:
    stop = StopRequest()
    began_s = time.monotonic()
    assert not stop.wait(0.05)
    assert time.monotonic() - began_s >= 0.05
    stop.set()
    assert stop.wait(60)
    stop.close()


@pytest.mark.usefixtures("_many")
def test_another_program_is_run() -> None:
    done = run_bounded(["sh", "-c", "echo out; exit 3"], timeout_s=30, limit_bytes=100)
    assert (done.status, done.text) == (3, "out")
