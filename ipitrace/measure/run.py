# SPDX-License-Identifier: Apache-2.0
"""A measurement, from the request to the result."""

import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime

from ipitrace.base.errors import IpitraceError
from ipitrace.base.version import VERSION
from ipitrace.host.neighbours import read_neighbours
from ipitrace.host.runs import announced
from ipitrace.measure.accounting import ProgramAccounts
from ipitrace.measure.clocks import ClockReadings, open_clock
from ipitrace.measure.guests import Guest
from ipitrace.measure.kept import KeptRepetitions
from ipitrace.measure.limits import Budget
from ipitrace.measure.lookout import Lookout
from ipitrace.measure.outcome import host_of, losses_of, observer_of, rows_of
from ipitrace.measure.performing import (
    Context,
    Gathered,
    Progress,
    finished,
    perform,
    perform_turns,
)
from ipitrace.measure.plan import plan_for
from ipitrace.measure.request import RunRequest, check_count, check_request
from ipitrace.measure.rows import RowWriter, Sink
from ipitrace.measure.tracers import open_tracers
from ipitrace.measure.trust import doubts
from ipitrace.recording.disturbances import describe_disturbances
from ipitrace.recording.result import RunResult


def run(
    request: RunRequest,
    guest: Guest,
    sink: Sink,
    progress: Progress,
    opened: Callable[[], None] = lambda: None,
) -> tuple[RunResult, IpitraceError | None]:
    """Measure. Returns the result, and the error that ended the run early or None.

    `opened` is called after the BPF programs are loaded and before the first storm.

    Raises:
        UsageError, HostError: nothing could be measured.
        InterruptedRunError: the run was interrupted before anything was completed.
    """
    check_request(request)
    driver = guest.driver
    check_count(request, driver)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    started_s = time.monotonic()
    plan = plan_for(request, guest)
    neighbours = read_neighbours(own_pids=guest.own_pids)
    clock = open_clock()
    clocks, kept = ClockReadings(clock), KeptRepetitions()
    with contextlib.ExitStack() as stack:
        tracers = None
        if request.trace and guest.pid is not None:
            tracers = stack.enter_context(open_tracers(guest.pid, driver.n_vcpus))
        accounts = None
        if tracers is not None and plan.accounted:
            accounts = ProgramAccounts(tracers, plan.accounted)
        opened()
        stack.enter_context(announced(plan.cpus(driver)))
        lookout = Lookout(guest, neighbours, plan.cpus(driver))
        context = Context(request, guest, plan, tracers, clock, progress)
        gathered = Gathered(clocks, kept, RowWriter(sink), lookout, Budget(plan.limits))
        failure = perform(context, gathered, perform_turns)
        measured = finished(context, gathered)
        rows = rows_of(request.scenarios, driver, measured, clocks.guest_cycles_per_ns())
        losses = losses_of(tracers, measured, kept.incomplete)
        observer = None if tracers is None else observer_of(tracers, measured)
        if accounts is not None and failure is None:
            failure = perform(context, gathered, accounts.perform)
    early = sum(r.cycles.early for m in measured for r in m.repetitions)
    clock_found = clocks.result(
        shares_tsc=guest.shares_tsc,
        stated_by=guest.tsc_stated_by,
        violations={"handler_before_send": early},
    )
    all_sends = sum(r.sent + m.warmup for m in measured for r in m.repetitions)
    recorded_sends = sum(row.sent for row in rows)
    result = RunResult(
        ipitrace_version=VERSION,
        started_at=started_at,
        duration_seconds=round(time.monotonic() - started_s, 3),
        command=request.command,
        complete=failure is None,
        failure=None if failure is None else failure.message,
        untrustworthy=(
            *describe_disturbances(lookout.disturbances, worthless=True),
            *doubts(losses, clock_found, all_sends=all_sends, recorded_sends=recorded_sends),
        ),
        host=host_of(guest.pinning, neighbours),
        guest=driver.describe(),
        clock=clock_found,
        losses=losses,
        observer=observer,
        observer_absent=None if observer else _why_untraced(guest),
        scenarios=rows,
        seed=request.seed,
        disturbances=tuple(lookout.disturbances),
        limits=plan.limits,
        program_costs=None if accounts is None else accounts.result(),
    )
    return result, failure


def _why_untraced(guest: Guest) -> str:
    if guest.untraced is not None:
        return f"nothing was traced: {guest.untraced}"
    return "nothing was traced (--no-trace)"
