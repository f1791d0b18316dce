# SPDX-License-Identifier: Apache-2.0
"""One interval of `watch` as text, for a terminal or for a log."""

from collections.abc import Iterable, Sequence
from typing import Final

from ipitrace.base.console import PIPE_WIDTH
from ipitrace.base.foreign import plain
from ipitrace.base.units import MIB, processes
from ipitrace.render.grid import clipped, dense, wrapped
from ipitrace.render.watch.gone import ended_words, pending_words, unseen_words
from ipitrace.watch.model import Count, LatePosts, Sight, VcpuPair, VmInterval, WatchInterval

_NOTHING: Final = "-"
_MOST_CHARS: Final = 10_000  # of one paragraph
_NAME_CHARS: Final = 1000
_LABEL: Final = 11  # columns
_MOST_VMS: Final = 8  # shown on a terminal
_FEWEST_PAIRS: Final = 3
_MOST_ODD: Final = 3
_FEW: Final = 10  # a lower rate is printed with a decimal


def render_interval(
    interval: WatchInterval, *, width: int = PIPE_WIDTH, height: int | None = None
) -> str:
    """The interval, cut to a terminal of `height` lines; None shows everything."""
    busiest = sorted(interval.vms, key=lambda vm: (-vm.ipis.delta, -vm.events.delta, vm.name))
    shown = busiest if height is None else busiest[:_MOST_VMS]
    head = [_title(interval), ""]
    if not interval.vms:
        head.append("There is no VM to watch.")
    else:
        head += _vm_table(interval, shown, width, cut=height is not None)
    head += _sight(interval.sight, width)
    if len(shown) < len(busiest):
        head.append(f"({len(busiest) - len(shown)} more VMs)")
    brief = height is not None
    tail = _below(interval, shown[: 1 if brief else len(shown)], width, brief=brief)
    room = None if height is None else max(height - len(head) - len(tail) - 4, _FEWEST_PAIRS)
    lines = [*head, *_pairs(interval, shown, room, width), "", *tail]
    if height is not None:
        lines = lines[:height]
    return "\n".join(clipped(line, width).rstrip() for line in lines)


def _title(interval: WatchInterval) -> str:
    when = "whole run" if interval.number is None else f"{interval.time[11:19]} UTC"
    vm = f"{plain(interval.vms[0].name)}, " if len(interval.vms) == 1 else ""
    return f"ipitrace watch: {vm}{when}, {interval.duration_s:.1f} s" + (
        "" if interval.number is None else f"; watched for {interval.elapsed_s:.0f} s"
    )


def _sight(sight: Sight, width: int) -> list[str]:
    """Processes that were not examined; a low terminal does not cut these lines off."""
    words = []
    if sight.unreadable_processes:
        needs = f" (this needs {' and '.join(sight.missing)})" if sight.missing else ""
        words.append(
            f"{processes(sight.unreadable_processes)} cannot be inspected{needs}: their VMs "
            "are not watched"
        )
    if sight.unlisted is not None:
        words.append(f"{sight.unlisted}: their VMs are not watched")
    words += [f"odd: {odd}" for odd in sight.odd[:_MOST_ODD]]
    if len(sight.odd) > _MOST_ODD:
        words.append(f"odd: {len(sight.odd) - _MOST_ODD} more processes, see 'ipitrace list'")
    return [line for text in words for line in _wrapped("not seen", text, width)]


def _vm_table(
    interval: WatchInterval, vms: Sequence[VmInterval], width: int, *, cut: bool
) -> list[str]:
    s = interval.duration_s
    rows = [
        (
            plain(vm.name, _NAME_CHARS),
            f"{vm.pid}",
            f"{len(vm.vcpus)}",
            _seen(vm, s),
            _total_seen(vm),
            _NOTHING if vm.exits.reasons is None else _rate(_exits_of(vm), s),
            _rate(vm.wakeups.delta, s),
            _rate(sum(other.interrupts.delta for other in vm.others), s),
        )
        for vm in vms
    ]
    headers = ("VM", "pid", "vCPUs", "IPIs/s", "IPIs", "exits/s", "wake-ups/s", "others/s")
    return dense(headers, rows, text=(0,), width=width, cut=cut)


def _pairs(
    interval: WatchInterval, vms: Sequence[VmInterval], room: int | None, width: int
) -> list[str]:
    """The busiest pairs of all VMs shown, and the sum of the other pairs."""
    several = len(interval.vms) > 1
    found: list[tuple[VmInterval, VcpuPair]] = [(vm, pair) for vm in vms for pair in vm.pairs]
    found.sort(key=lambda entry: (-entry[1].ipis.delta, -entry[1].ipis.total))
    listed = found if room is None else found[:room]
    if not listed:
        return ["", "No IPI of these VMs was seen."] if vms else []
    rows = [
        (
            *((plain(vm.name, _NAME_CHARS),) if several else ()),
            f"{pair.sender}",
            "?" if pair.target is None else f"{pair.target}",
            f"{pair.vector:#04x}",
            plain(pair.mode, _NAME_CHARS),
            plain(pair.path, _NAME_CHARS),
            _rate(pair.ipis.delta, interval.duration_s),
            f"{pair.ipis.total:,}",
        )
        for vm, pair in listed
    ]
    names = ("from", "to", "vector", "mode", "path", "IPIs/s", "IPIs")
    first = 1 if several else 0
    lines = dense(
        (*(("VM",) if several else ()), *names),
        rows,
        text=(0,) * first + (first + 3, first + 4),
        width=width,
        cut=room is not None,
    )
    unlisted = found[len(listed) :]
    left_out = [vm.pairs_left_out for vm in vms]
    n_pairs = len(unlisted) + sum(rest.pairs for rest in left_out)
    if n_pairs:
        delta = sum(pair.ipis.delta for _, pair in unlisted)
        delta += sum(rest.ipis.delta for rest in left_out)
        lines.append(f"({n_pairs} more: {_rate(delta, interval.duration_s)} IPIs/s)")
    return ["", *lines]


def _below(
    interval: WatchInterval, vms: Sequence[VmInterval], width: int, *, brief: bool
) -> list[str]:
    lines: list[str] = []
    for vm in vms:
        prefix = f"{vm.name}: " if len(interval.vms) > 1 else ""
        lines += _wrapped("exits/s", prefix + _exit_words(vm, interval.duration_s), width)
        if vm.pv_tlb_flushes is not None and vm.pv_tlb_flushes.total:
            words = (
                f"{_rate(vm.pv_tlb_flushes.delta, interval.duration_s)} flushes of the TLB of a "
            )
            words += f"preempted vCPU, {vm.pv_tlb_flushes.total:,} in all, each in place of IPIs"
            lines += _wrapped("PV TLB/s", prefix + words, width)
        if vm.others:
            words = _counted(
                ((f"{o.vector:#04x}", o.interrupts) for o in vm.others), interval.duration_s
            )
            lines += _wrapped("others/s", prefix + words, width)
        lines += _wrapped("visible", prefix + vm.visibility.why, width)
        lines += [line for text in _losses(vm) for line in _wrapped("losses", prefix + text, width)]
    lines += _wrapped("late posts", _late_posts(interval), width)
    if interval.late_posts.elsewhere:
        lines += _wrapped("elsewhere", _elsewhere(interval.late_posts), width)
    for text in ended_words(interval, brief=brief):
        lines += _wrapped("ended", text, width)
    for text in pending_words(interval.pending):
        lines += _wrapped("pending", text, width)
    for text in unseen_words(interval.unseen):
        lines += _wrapped("unseen", text, width)
    own = interval.own
    lines += _wrapped(
        "own cost",
        f"{own.cpu_share:.2%} of one CPU, {own.rss_bytes / MIB:.0f} MiB"
        + (
            f"; {interval.recursion_misses:,} events skipped by the kernel (recursion), whole host"
            if interval.recursion_misses
            else ""
        ),
        width,
    )
    return lines


def _exit_words(vm: VmInterval, duration_s: float) -> str:
    if vm.exits.reasons is None:
        return f"{_NOTHING} ({vm.exits.absent})"
    words = _counted(((row.reason, row.exits) for row in vm.exits.reasons), duration_s)
    return words if vm.exits.source == "kvm_exit" else f"{words} ({vm.exits.source})"


def _exits_of(vm: VmInterval) -> int:
    """All exits; KVM's statistics have a separate counter for them."""
    reasons = vm.exits.reasons or ()
    if vm.exits.source != "kvm_exit":
        return max((row.exits.delta for row in reasons if row.reason == "exits"), default=0)
    return sum(row.exits.delta for row in reasons)


def _late_posts(interval: WatchInterval) -> str:
    posts = interval.late_posts
    if posts.rows is None:
        return f"{_NOTHING} ({posts.absent})"
    sums = ", ".join(
        f"{row} {_NOTHING if added is None else format(added, ',')}"
        for row, added in posts.rows.items()
    )
    where = "; ".join(
        f"CPU {cpu.cpu}: "
        + ", ".join(f"{row} {added:,}" for row, added in cpu.rows.items() if added)
        + f" ({', '.join(cpu.vms) or 'no watched vCPU seen there'})"
        for cpu in posts.cpus
    )
    return f"{sums}, whole host, of any VM" + (f". {where}" if where else "")


def _elsewhere(posts: LatePosts) -> str:
    allowed = {cpu.cpu: cpu.allowed for cpu in posts.cpus}
    told = "; ".join(
        f"{row} "
        + ", ".join(
            f"{n:,} on CPU {cpu} ({' and '.join(allowed[cpu]) or 'none'} may run there)"
            for cpu, n in on_cpus.items()
        )
        for row, on_cpus in posts.elsewhere.items()
    )
    return f"on CPUs where no watched vCPU was seen: {told}; a VM that is not watched may run there"


def _losses(vm: VmInterval) -> list[str]:
    lost = []
    if vm.unplaced.total:
        lost.append(f"{vm.unplaced.total:,} events counted but not attributed (table full)")
    if vm.missed.total:
        lost.append(f"{vm.missed.total:,} events not counted (one BPF program interrupted another)")
    if vm.unwatched:
        named = ", ".join(map(str, vm.unwatched))
        why = "thread not known or now of another VM, or table full"
        lost.append(f"vCPUs not watched ({why}): {named}")
    return lost


def _seen(vm: VmInterval, duration_s: float) -> str:
    if not vm.ipis.delta and vm.visibility.complete is not True:
        return "none seen"
    return _bound(vm) + _rate(vm.ipis.delta, duration_s)


def _total_seen(vm: VmInterval) -> str:
    if not vm.ipis.total and vm.visibility.complete is not True:
        return "none seen"
    return _bound(vm) + f"{vm.ipis.total:,}"


def _bound(vm: VmInterval) -> str:
    return "" if vm.visibility.complete else ">="


def _counted(counts: Iterable[tuple[str, Count]], duration_s: float) -> str:
    """Names and rates of the events of the interval."""
    found = list(counts)
    busy = [(name, count) for name, count in found if count.delta]
    if not busy:
        return "none in this interval"
    return ", ".join(f"{name} {_rate(count.delta, duration_s)}" for name, count in busy)


def _rate(delta: int, duration_s: float) -> str:
    rate = delta / duration_s if duration_s > 0 else 0.0
    return f"{rate:.1f}" if 0 < rate < _FEW else f"{rate:,.0f}"


def _wrapped(label: str, text: str, width: int) -> list[str]:
    """A paragraph after its label; every paragraph passes here, and is made plain()."""
    lines = wrapped(plain(text, _MOST_CHARS), width - _LABEL)
    return [f"{label:<{_LABEL}}{lines[0]}", *(" " * _LABEL + line for line in lines[1:])]
