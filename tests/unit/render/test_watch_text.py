# SPDX-License-Identifier: Apache-2.0
"""An interval of `watch` as text and as OpenMetrics."""

import cProfile
import json
import pstats
from dataclasses import replace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ipitrace.render.grid import columns_of
from ipitrace.render.watch.openmetrics import render_openmetrics
from ipitrace.render.watch.text import render_interval
from ipitrace.vm.discovery import LONGEST_NAME
from ipitrace.watch.mechanisms import Facts
from ipitrace.watch.model import (
    SCHEMA_VERSION,
    Count,
    CpuPosts,
    ExitsOfReason,
    IpiKind,
    LatePosts,
    Other,
    OwnCost,
    PairsLeftOut,
    Sight,
    VcpuCounts,
    VcpuPair,
    Visibility,
    VmExits,
    VmInterval,
    WatchInterval,
)
from ipitrace.watch.visibility import visibility

NONE = Count(0, 0)


def vm(name: str = "guest1", n_pairs: int = 2) -> VmInterval:
    ipis = Count(2_000 * n_pairs, 10_000 * n_pairs)
    each = Count(2_000, 10_000)
    return VmInterval(
        name=name,
        pid=4711,
        vcpus=tuple(VcpuCounts(i, each, each, Count(1, 2)) for i in range(4)),
        visibility=Visibility(complete=True, why="every IPI takes an exit"),
        sends=ipis,
        ipis=ipis,
        pairs=tuple(VcpuPair(0, 1 + i, 0xFD, "fixed", "msr-exit", each) for i in range(n_pairs)),
        pairs_left_out=PairsLeftOut(3, Count(4, 40)),
        kinds=(IpiKind(0xFD, "fixed", "msr-exit", ipis),),
        exits=VmExits("kvm_exit", (ExitsOfReason("MSR_WRITE", Count(6_000, 9_000)),), None),
        wakeups=Count(5, 50),
        waited=Count(1, 5),
        others=(Other(0xEC, "fixed", Count(250, 900)),),
        unplaced=NONE,
        missed=NONE,
        events=Count(9, 9),
        cpus=(0,),
        watched_s=7.0,
        unwatched=(),
    )


def interval(*vms: VmInterval) -> WatchInterval:
    return WatchInterval(
        schema_version=SCHEMA_VERSION,
        number=3,
        time="2026-01-02T03:04:05.678+00:00",
        duration_s=2.0,
        elapsed_s=8.0,
        vms=vms,
        late_posts=LatePosts(
            {"PIN": 7, "PIW": None},
            (CpuPosts(3, {"PIN": 7}, (), ("guest1",)),),
            {"PIN": {3: 7}},
            None,
        ),
        own=OwnCost(0.0123, 200 << 20),
        recursion_misses=0,
        ended=(),
        departed=0,
        stopped=None,
    )


def test_rates_are_per_second_and_totals_are_not() -> None:
    lines = render_interval(interval(vm())).splitlines()
    assert lines[0] == "ipitrace watch: guest1, 03:04:05 UTC, 2.0 s; watched for 8 s"
    assert lines[3].split() == ["guest1", "4711", "4", "2,000", "20,000", "3,000", "2.5", "125"]
    assert lines[6].split() == ["0", "1", "0xfd", "fixed", "msr-exit", "1,000", "10,000"]
    text = "\n".join(lines)
    assert "(3 more: 2.0 IPIs/s)" in text
    assert "PIN 7, PIW -, whole host, of any VM. CPU 3: PIN 7 (no watched vCPU seen there)" in text
    assert "elsewhere  on CPUs where no watched vCPU was seen" in text
    assert "PIN 7 on CPU 3 (guest1 may run there)" in " ".join(text.split())
    assert "1.23% of one CPU, 200 MiB" in text


@pytest.mark.parametrize("complete", [None, False])
def test_what_may_be_invisible_is_never_zero(complete: bool | None) -> None:  # noqa: FBT001
    visibility = Visibility(complete=complete, why="some leave no trace")
    silent = replace(
        vm(n_pairs=0), visibility=visibility, ipis=NONE, pairs_left_out=PairsLeftOut(0, NONE)
    )
    row = render_interval(interval(silent)).splitlines()[3]
    assert row.count("none seen") == 2
    row = render_interval(interval(replace(vm(), visibility=visibility))).splitlines()[3]
    assert ">=2,000" in row
    assert ">=20,000" in row


def test_exits_that_cannot_be_known_are_no_number() -> None:
    unknown = replace(vm(), exits=VmExits(None, None, "kvm_exit does not fire"))
    text = render_interval(interval(unknown))
    assert text.splitlines()[3].split()[5] == "-"
    assert "- (kvm_exit does not fire)" in text


def test_losses_are_told() -> None:
    lossy = replace(vm(), unplaced=Count(0, 12), missed=Count(1, 3), unwatched=(2,))
    text = render_interval(interval(lossy))
    assert "12 events counted but not attributed" in text
    assert "3 events not counted" in text
    assert "2" in text


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (40, 10)])
@pytest.mark.parametrize("n_vms", [0, 1, 30])
def test_it_fits_the_terminal(width: int, height: int, n_vms: int) -> None:
    vms = [vm(f"guest{i}", 60) for i in range(n_vms)]
    lines = render_interval(interval(*vms), width=width, height=height).splitlines()
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)


def test_at_80_by_24_nothing_of_one_vm_is_cut_off() -> None:
    hooks = frozenset({"kvm_apicv_accept_irq", "kvm_hypercall", "kvm_apic_accept_irq"})
    long = visibility(Facts(accepted=1_769_000, hooks=hooks), "")
    big = replace(vm(n_pairs=60), visibility=long)
    lines = render_interval(interval(big), width=80, height=24).splitlines()
    assert lines[2].split()[-1] == "others/s"
    assert any("60 more" in line or "more:" in line for line in lines)
    assert lines[-1].startswith("own cost")


def test_the_text_of_many_vms_takes_little_for_each() -> None:
    """In calls of functions, which do not depend on the machine; two thousand, it once was."""
    many = interval(*(vm(f"guest{i}") for i in range(200)))
    profile = cProfile.Profile()
    text = profile.runcall(render_interval, many)
    assert len(text.splitlines()) > 200 * 4
    assert pstats.Stats(profile).total_calls < 200 * 150  # type: ignore[attr-defined]


@pytest.mark.parametrize("height", [None, 24])
def test_a_vm_with_a_chinese_name_keeps_the_columns(height: int | None) -> None:
    name = "东京的虚拟机-1"
    for width in (60, 80, 100):
        text = render_interval(interval(vm("guest1"), vm(name)), width=width, height=height)
        assert all(columns_of(line) <= width for line in text.splitlines())
        of_vms = [line for line in text.splitlines() if " 4711 " in line]
        assert len(of_vms) == 2
        assert len({columns_of(line[: line.index("4711")]) for line in of_vms}) == 1


def test_openmetrics_has_totals_by_vm() -> None:
    two = interval(vm('a"b'), vm("guest2"))
    samples = [
        s for f in text_string_to_metric_families(render_openmetrics(two)) for s in f.samples
    ]
    ipis = [s for s in samples if s.name == "ipitrace_ipis_total"]
    assert {s.labels["vm"] for s in ipis} == {'a"b', "guest2"}
    assert [s.value for s in ipis] == [20_000, 20_000]
    assert {s.value for s in samples if s.name == "ipitrace_ipis_complete"} == {1}
    (share,) = (s for s in samples if s.name == "ipitrace_watch_cpu_share")
    assert share.value == pytest.approx(0.0123)


def test_openmetrics_has_each_series_once() -> None:
    """Also after a process has closed its VM and opened another, while both are watched."""
    former, later = vm(n_pairs=5), replace(vm(n_pairs=1), watched_s=1.0)
    other_process = replace(vm(n_pairs=3), pid=5000)
    lines = render_openmetrics(interval(former, later, other_process)).splitlines()
    series = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(set(series)) == len(series)
    assert 'ipitrace_watched_seconds{vm="guest1",pid="4711"} 1.0' in lines
    kind = 'vector="253",mode="fixed",path="msr-exit"'
    assert f'ipitrace_ipis_total{{vm="guest1",pid="4711",{kind}}} 10000' in lines
    assert f'ipitrace_ipis_total{{vm="guest1",pid="5000",{kind}}} 30000' in lines


def test_openmetrics_keeps_names_apart_that_take_many_escapes() -> None:
    """The VMs of one process differ in the last characters of their names."""
    name = "\U000e0001" * LONGEST_NAME
    text = render_openmetrics(interval(vm(f"{name}-10"), vm(f"{name}-11")))
    families = text_string_to_metric_families(text)
    (watched,) = (f for f in families if f.name == "ipitrace_watched_seconds")
    assert [s.labels["vm"][-3:] for s in watched.samples] == ["-10", "-11"]


def test_what_cannot_be_seen_is_always_said() -> None:
    sight = Sight(75, None, ("CAP_SYS_PTRACE",), ("pid 7 (x, user 9): its name is too long",))
    for vms in ((), (vm(),)):
        hidden = replace(interval(*vms), sight=sight)
        text = " ".join(render_interval(hidden, width=80, height=24).split())
        assert "75 processes cannot be inspected (this needs CAP_SYS_PTRACE)" in text
        assert "odd: pid 7 (x, user 9)" in text
        metrics = render_openmetrics(hidden)
        assert "ipitrace_watch_unreadable_processes 75\n" in metrics
        assert "ipitrace_watch_sight_complete 0\n" in metrics
        assert "ipitrace_watch_sight_complete 1\n" in render_openmetrics(interval(*vms))
    unlisted = replace(interval(), sight=Sight(unlisted="/proc hides them"))
    assert "/proc hides them" in render_interval(unlisted)


def test_a_line_of_json_is_what_the_interval_is() -> None:
    one = interval(vm())
    assert json.loads(one.to_json()) == json.loads(json.dumps(one.to_dict()))


def test_flushes_in_place_of_ipis_are_shown_where_there_are_any() -> None:
    for none in (None, NONE):
        assert "PV TLB" not in render_interval(interval(replace(vm(), pv_tlb_flushes=none)))
    text = render_interval(interval(replace(vm(), pv_tlb_flushes=Count(8, 1_234))))
    (line,) = [line for line in text.splitlines() if line.startswith("PV TLB/s")]
    assert line.split()[2] == "4.0"
    assert "1,234 in all" in line
