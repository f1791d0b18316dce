# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' watchers on this host: what they leave, and how a tool that fails is told."""

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.added import measure
from bench.storms import Storms, scenario
from bench.watchers import (
    NOTHING,
    OTHER_VM,
    STAGE_TRACEPOINTS,
    DoesNotRunError,
    Peer,
    own_watches,
    peer_watch,
    peers,
)
from ipitrace.tracer.events import EVENT_BY_NAME
from ipitrace.tracer.tracefs import ensure_tracefs

pytestmark = pytest.mark.live

STORMS = Storms(scenario("unicast-running"), 60)


@pytest.fixture(autouse=True)
def tracefs() -> Path:
    found, why = ensure_tracefs()
    assert found is not None, why
    return found


def shell(script: str, ready: str = "") -> Peer:
    return Peer("a shell", "shell", ("no-such-program", "sh"), ("-c", script), ready)


def test_a_tool_that_is_not_installed_is_absent(tmp_path: Path) -> None:
    peer = Peer("none", "none", ("no-such-program",), ())
    with pytest.raises(DoesNotRunError, match=r"^absent$"), peer_watch(peer, tmp_path, 0.1):
        pass


def test_a_tool_that_ends_by_itself_says_why(tmp_path: Path) -> None:
    peer = shell("echo first; echo 'no headers' >&2; exit 1")
    with (
        pytest.raises(DoesNotRunError, match=r"^does not run here: no headers$"),
        peer_watch(peer, tmp_path, 0.5),
    ):
        pass


def test_a_tool_runs_while_inside_and_is_interrupted_after(tmp_path: Path) -> None:
    """It waits for a command, as `trace-cmd record` does, and only then writes its file."""
    peer = shell("trap 'echo stopped' INT; echo ready; sleep 600; exit", "ready")
    with peer_watch(peer, tmp_path, 0.1):
        assert (tmp_path / "shell.txt").read_text() == "ready\n"
    assert (tmp_path / "shell.txt").read_text() == "ready\nstopped\n"


def test_a_tool_that_others_would_disturb_is_left_out(tmp_path: Path, tracefs: Path) -> None:
    switch = tracefs / "events/kvm/kvm_msr/enable"
    switch.write_text("1")
    try:
        with (
            pytest.raises(DoesNotRunError, match="left out"),
            peer_watch(shell("sleep 9"), tmp_path, 0.1),
        ):
            pass
    finally:
        switch.write_text("0")


def test_the_tools_trace_the_tracepoints_that_this_kernel_has(
    tmp_path: Path, tracefs: Path
) -> None:
    assert set(STAGE_TRACEPOINTS) <= set(EVENT_BY_NAME)
    present = [name for name in STAGE_TRACEPOINTS if list(tracefs.glob(f"events/*/{name}"))]
    assert present
    for peer in peers(tmp_path, [*STAGE_TRACEPOINTS, "vmx_deliver_interrupt"]):
        if "same tracepoints" in peer.name:
            words = " ".join(peer.arguments)
            assert all(f":{name}" in words for name in present)
            assert "vmx_deliver_interrupt" not in words
    (bpftrace,) = (peer for peer in peers(tmp_path, STAGE_TRACEPOINTS) if peer.key == "bpftrace")
    assert f"pid == {os.getpid()}" in bpftrace.arguments[1]


def test_ipitrace_watches_in_each_mode_and_leaves_nothing_attached() -> None:
    with ExitStack() as stack:
        watches = own_watches(stack)
        counted = {}
        for name, watch in watches.items():
            with watch() as hooks:
                counted[name] = STORMS.run(hooks).counted
    assert counted.pop(NOTHING) is None
    assert counted.pop(OTHER_VM) is None
    assert len(counted) >= 2
    for name, of_kinds in counted.items():
        assert of_kinds is not None, name
        assert of_kinds.sum() >= STORMS.count, name


def test_each_watcher_has_its_figures_or_a_reason(tmp_path: Path) -> None:
    with ExitStack() as stack:
        found = list(measure(STORMS, own_watches(stack), tmp_path / "files"))
    assert found[0].watcher == NOTHING
    assert len({added.watcher for added in found}) == len(found) >= 8
    for added in found:
        assert set(added.nothing) == {"S", "D", "R"}
        assert all(0 < added.nothing[a] < added.nothing[b] for a, b in ("SR", "DR"))
        assert (added.watched is None) == bool(added.why)
        if added.key and not added.why:
            assert (tmp_path / f"files/{added.key}.txt").exists()
        elif not added.key:
            assert bool(added.counted) == (added.watcher not in {NOTHING, OTHER_VM})
