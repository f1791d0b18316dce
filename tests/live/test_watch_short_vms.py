# SPDX-License-Identifier: Apache-2.0
"""`ipitrace watch` of VMs that begin and end between two samples: every IPI is counted once."""

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from guests import until
from short_vms import ShortVms, short_vms
from test_watch import next_interval, stepped_guest, totals, watching

from bench.crowd import crowd
from ipitrace.render.watch.openmetrics import render_openmetrics
from ipitrace.render.watch.text import render_interval
from ipitrace.vm import discover
from ipitrace.watch import Watcher, roster
from ipitrace.watch.model import EndedVm, WatchInterval

pytestmark = pytest.mark.live

COUNT = 1000
LIFE_S = 0.4
NOBODY = 65534


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    """All VMs are watched; a sample is taken when the test says so."""
    with Watcher.open(discover(), None, top=20) as opened:
        opened.sample()
        yield opened


def waiting(watcher: Watcher) -> set[int]:
    """The processes whose threads have taken slots; others' VMs run, too."""
    return {claim.pid for claim in watcher._roster.claims}


def of(interval: WatchInterval, pids: set[int]) -> list[EndedVm]:
    return [one for one in interval.ended_vms if one.vm.pid in pids]


def test_a_vm_that_lived_between_two_samples_is_reported_once(watcher: Watcher) -> None:
    with short_vms(COUNT, LIFE_S, uid=NOBODY) as vms:
        (pid,) = vms.run(1)
    interval = watcher.sample()
    (one,) = of(interval, {pid})
    assert one.why == "its process ended before the VM was examined"
    assert one.comm is not None
    assert one.comm.startswith("python")
    assert (one.vm.name, one.vm.uid, one.vm.vcpus) == (f"pid:{pid}", NOBODY, ())
    assert one.vm.sends.total == one.vm.ipis.total == COUNT
    (pair,) = one.vm.pairs
    assert pair.sender == one.threads[0]
    assert (pair.target, pair.vector, pair.ipis.total) == (1, 0xF0, COUNT)
    assert pair.path != "unknown"
    assert one.vm.visibility.complete
    assert pid not in waiting(watcher)
    assert interval.unseen.sends.delta == interval.unseen.threads.delta == 0
    assert interval.departed_vms >= 1
    assert interval.departed >= COUNT
    assert pid not in {vm.pid for vm in interval.vms}

    later = watcher.sample()
    assert of(later, {pid}) == []
    whole = watcher.summary()
    assert of(whole, {pid}) == [one]
    text = " ".join(render_interval(whole).split())
    assert (
        f"pid:{pid} (pid {pid}, {one.comm}, user {NOBODY}): "
        "its process ended before the VM was examined; "
    ) in text
    assert f"1,000 sends, 1,000 IPIs: tid {pair.sender} -> 1 0xf0 fixed {pair.path} 1,000" in text
    metrics = render_openmetrics(whole)
    assert f"ipitrace_watch_ended_ipis_total {whole.departed}\n" in metrics
    assert f"ipitrace_watch_ended_vms_total {whole.departed_vms}\n" in metrics


@pytest.mark.parametrize("interval_s", [1, 2])
def test_the_command_counts_each_ipi_of_a_short_vm_once(interval_s: int, tmp_path: Path) -> None:
    """Wherever in an interval the VM begins and ends."""
    path = tmp_path / "ipitrace.prom"
    with (
        watching("--interval", interval_s, "--json", "--openmetrics", path) as watch,
        short_vms(COUNT, LIFE_S) as vms,
    ):
        next_interval(watch)
        (pid,) = vms.run(1)
        found = until_ended(watch, {pid})
        assert [one["vm"]["ipis"]["total"] for one in found] == [COUNT]
        assert [one["vm"]["sends"]["total"] for one in found] == [COUNT]
        last = next_interval(watch)
        assert pid not in {one["vm"]["pid"] for one in last["ended_vms"]}
        assert last["departed"] == sum(
            value
            for (name, _), value in totals(path.read_text()).items()
            if name == "ipitrace_watch_ended_ipis_total"
        )


def until_ended(watch: Any, pids: set[int]) -> list[dict[str, Any]]:
    """What the command says of these VMs, until it has said something of each."""
    found: list[dict[str, Any]] = []
    while pids - {one["vm"]["pid"] for one in found}:
        told = next_interval(watch)["ended_vms"]
        found += [one for one in told if one["vm"]["pid"] in pids]
    return found


def test_the_text_of_the_command_says_it() -> None:
    with watching("--interval", 2) as watch, short_vms(COUNT, LIFE_S) as vms:
        assert watch.stdout is not None
        while "own cost" not in watch.stdout.readline():
            pass
        (pid,) = vms.run(1)
        time.sleep(2)
        watch.send_signal(signal.SIGINT)
        said, complained = watch.communicate(timeout=60)
    assert complained == ""
    summary = " ".join(said.partition("whole run")[2].split())
    assert re.search(
        rf"ended pid:{pid} \(pid {pid}\b[^:]*\): [^:]*: 1,000 sends, 1,000 IPIs", summary
    )


def test_twenty_short_vms_are_counted_one_by_one() -> None:
    """Ten at the same time, then ten one after another."""
    with watching("--interval", 2, "--json") as watch, short_vms(COUNT, LIFE_S) as vms:
        first = next_interval(watch)
        pids = set(vms.run(10))
        for _ in range(10):
            pids |= set(vms.run(1))
        assert len(pids) == 20
        found = until_ended(watch, pids)
        last = next_interval(watch)
    assert sorted(one["vm"]["pid"] for one in found) == sorted(pids)
    assert {one["vm"]["ipis"]["total"] for one in found} == {COUNT}
    assert last["departed"] >= 20 * COUNT
    for what in ("sends", "threads"):
        assert last["unseen"][what]["total"] == first["unseen"][what]["total"]


def test_what_finds_no_slot_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    n_slots, n_vms = 4, 6
    monkeypatch.setattr(roster, "MOST_CLAIMS", n_slots)
    with (
        Watcher.open(discover(), None, top=20) as watcher,
        short_vms(COUNT, 0.0) as vms,
    ):
        pids = {pid for _ in range(n_vms) for pid in vms.run(1)}
        interval = watcher.sample()
        counted = of(interval, pids)
        assert len(counted) <= n_slots  # others' VMs may have taken some
        assert {one.vm.ipis.total for one in counted} <= {COUNT}
        n_left = n_vms - len(counted)
        unseen = interval.unseen
        assert unseen.threads.total >= n_left
        assert unseen.sends.total >= unseen.gone_sends.total >= n_left * COUNT
        text = " ".join(render_interval(interval).split())
        assert f"{unseen.sends.total:,} sends by vCPU threads for which no slot" in text
        # The slots are free again after the next sample.
        until(lambda: taken_again(watcher, vms))


def taken_again(watcher: Watcher, vms: ShortVms) -> bool:
    watcher.sample()
    pids = set(vms.run(1))
    return [one.vm.ipis.total for one in of(watcher.sample(), pids)] == [COUNT]


def test_a_vm_keeps_what_was_counted_before_it_was_examined(watcher: Watcher) -> None:
    count = 300
    with stepped_guest("unicast-running", 2, count) as guest:
        # Its warm-up is over: one send.
        interval = watcher.sample()
        assert interval.pending.threads >= 1
        assert interval.pending.sends >= 1
        assert "whose VM has not been examined yet" in " ".join(render_interval(interval).split())
        guest.go_on()
        guest.wait()
        interval = watcher.sample()
        (vm,) = [vm for vm in interval.vms if vm.pid == guest.process.pid]
        assert vm.sends.total == vm.ipis.total == count + 1
        assert [(p.sender, p.target, p.ipis.total) for p in vm.pairs] == [(0, 1, count + 1)]
        assert guest.process.pid not in waiting(watcher)
    interval = watcher.sample()
    (one,) = of(interval, {guest.process.pid})
    assert (one.vm.ipis.total, one.comm, one.threads) == (count + 1, None, ())


def test_a_thread_that_only_injects_interrupts_takes_no_slot(watcher: Watcher) -> None:
    with crowd(1, 1, 1, 200) as (pid,):
        time.sleep(0.2)
        watcher._roster.offer()
        assert pid not in waiting(watcher)
