# SPDX-License-Identifier: Apache-2.0
"""The tables of scenarios whose vCPUs share CPUs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeAlias

from ipitrace.recording.row import Overcommit, PerSide, ScenarioResult, SideWaiting, Summary
from ipitrace.render.page import Page, Table

_Shared: TypeAlias = Sequence[tuple[str, Overcommit]]
_NOTHING: Final = "-"
_FEW: Final = 0.001  # of the waiting time: smaller shares are only in run.json


def overcommit_tables(rows: Sequence[ScenarioResult], page: Page) -> Iterator[str]:
    """D by whether the target waited, what ran instead, and what it caused per IPI."""
    shared = [(row.name, row.overcommit) for row in rows if row.overcommit is not None]
    if not shared:
        return
    absent: dict[str, str] = {}
    for row in rows:
        absent |= row.absent or {} if row.overcommit is not None else {}
    yield _deliver(shared, absent, page)
    yield _occupants(shared, page)
    yield _per_ipi(shared, absent, page)


def _deliver(shared: _Shared, absent: Mapping[str, str], page: Page) -> str:
    headers = ("scenario", "target", "IPIs", "share", "D p50", "p90", "p99", "max", "waited p50")
    lines = []
    for name, found in shared:
        target = _side(found, "target")
        if target is None:
            continue
        kinds = (
            ("running", found.deliver_running, None),
            ("waited", found.deliver_waiting, target.waited_cycles),
        )
        for kind, deliver, waited in kinds:
            count = 0 if deliver is None else deliver.count
            lines.append(
                (
                    name,
                    kind,
                    f"{count}",
                    f"{count / max(target.ipis, 1):.1%}",
                    *_percentiles(deliver),
                    _NOTHING if waited is None else f"{waited.p50}",
                )
            )
    if not lines:
        return page.paragraph(
            f"D by the state of the target: not known, {absent['overcommit.sides']}"
        )
    title = (
        "D by whether the target's thread kept its CPU from the send to the handler, by "
        "sched_switch, in the repetitions that record all events; waited: the cycles without a CPU"
    )
    remarks = [(f"  {name}: ", _waiting_words(found)) for name, found in shared if found.sides]
    return page.table(title, Table(headers, lines, text=(0, 1), keys=2), remarks)


def _waiting_words(found: Overcommit) -> str:
    target, cpus = _side(found, "target"), sorted(set(found.cpus))
    words = f"{found.vcpus_per_cpu} vCPUs on each CPU ({', '.join(map(str, cpus))})"
    if target is not None and target.off_at_send is not None:
        words += f"; {target.off_at_send:.1%} of the IPIs met a target without a CPU"
    if found.switched_out_s is not None and found.run_delay_s is not None:
        words += (
            f"; all vCPUs' threads were switched out for {found.switched_out_s:.3f} s, and waited "
            f"for {found.run_delay_s:.3f} s by the kernel's schedstat"
        )
    return words


def _occupants(shared: _Shared, page: Page) -> str:
    headers = ("scenario", "vCPU", "IPIs that waited", "who ran instead", "share of waiting")
    lines = [
        (name, side.side, f"{side.waited:.1%}", occupant.name, f"{occupant.share:.1%}")
        for name, found in shared
        for side in found.sides or ()
        for occupant in side.occupants
        if occupant.share >= _FEW
    ]
    if not lines:
        return ""
    title = (
        "Who ran instead, while a target waited between the send and its handler, and the sender "
        "between the send and the acknowledgement"
    )
    return page.table(title, Table(headers, lines, text=(0, 1, 3), keys=3))


def _per_ipi(shared: _Shared, absent: Mapping[str, str], page: Page) -> str:
    """Exits and yields; a figure that is not known has its reason below the table."""
    columns = {
        "PLE exits": "ple_exits",
        "PLE window updates": "ple_window_updates",
        "yields requested": "yields_attempted",
        "yields that succeeded": "yields_successful",
    }
    lines = [
        (name, *(_sides(getattr(found, field)) for field in columns.values()))
        for name, found in shared
    ]
    reasons = {
        label: why
        for label, field in columns.items()
        if (why := absent.get(f"overcommit.{field}")) is not None
    }
    title = "Pause-loop exiting (PLE) and directed yields per IPI, sender + target"
    remarks = [(f"  {label}: ", f"not known, {why}") for label, why in reasons.items()]
    return page.table(title, Table(("scenario", *columns), lines, text=(0,)), remarks)


def _side(found: Overcommit, side: str) -> SideWaiting | None:
    return next((each for each in found.sides or () if each.side == side), None)


def _percentiles(summary: Summary | None) -> tuple[str, ...]:
    if summary is None:
        return (_NOTHING,) * 4
    return tuple(f"{n}" for n in (summary.p50, summary.p90, summary.p99, summary.max))


def _sides(per: PerSide | None) -> str:
    return _NOTHING if per is None else f"{per.sender:.2f} + {per.target:.2f}"
