# SPDX-License-Identifier: Apache-2.0
"""Plausibility checks of every storm's records: a guest may return any data.

These are possible in a correct storm, and are not checked:

- IPIs that were not acknowledged in time, and IPIs that merged with another: they are counted.
- An acknowledgement later than the timeout: a sender that had no CPU checks for the
  acknowledgement before it checks the time.
- A handler that seems to run before its send: this occurs if TSCs differ between vCPUs, and is
  counted as `handler_before_send`.
- The handler before the end of the send: a vCPU that sends to itself handles the IPI before that.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ipitrace.abi.storm import ALL, ALL_BUT_SELF
from ipitrace.base.errors import MeasurementError
from ipitrace.storm import limits
from ipitrace.storm.driver import Driver, Hooks, Storm, StormRequest
from ipitrace.words.scenarios import Pattern

_SENDER: Final = 0
_LARGEST_STAMP: Final = 1 << 62
"""14 years at 10 GHz; the sum of two such stamps still is an int64."""

_PACE_SLACK: Final = 1_000
"""Cycles by which two RDTSC may be reordered: the one that begins a pause is not serialised."""
_RATE_SLACK: Final = 1.25
"""The largest ratio of a TSC's rate to its reported rate. KVM reports the correct rate. A guest
under emulation measures it during boot, and may measure any rate on a busy host: 204 of 2,596 MHz
were observed. Such a guest is rejected: its pace, --max-rate and each time in its report would be
wrong."""

_HINT: Final = (
    "A correct guest makes such records only if its TSC was set during the storm, differs between "
    "its vCPUs, or has another rate than its kernel measured (dmesg | grep -i tsc). Check who else "
    "is root in the guest, and whether its payload or ipitrace_storm belongs to this ipitrace."
)

Stamps = NDArray[np.int64]


def run_plausible(guest: Driver, request: StormRequest, hooks: Hooks) -> Storm:
    """Run one storm and check that its records are plausible.

    Raises:
        MeasurementError: they are not plausible, or as Driver.run.
        HostError: as Driver.run.
    """
    # Not CLOCK_MONOTONIC: the TSC may continue while the host is suspended.
    started_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    storm = guest.run(request, hooks)
    elapsed_s = time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
    check_plausible(storm, request, guest.targets(request.scenario), elapsed_s)
    return storm


def check_plausible(
    storm: Storm, request: StormRequest, targets: Sequence[int], elapsed_s: float
) -> None:
    """Check that a guest that executed `request` can have produced `storm`.

    Args:
        storm: the records.
        request: the parameters of the storm.
        targets: the vCPUs that handle each IPI.
        elapsed_s: an upper bound of the storm's duration by this host's clock.

    Raises:
        MeasurementError: it cannot; the message names the first reason.
    """
    for reason in _reasons(storm, request, targets, elapsed_s):
        raise MeasurementError(f"The guest's records cannot be true: {reason}.", _HINT)


def _reasons(
    storm: Storm, request: StormRequest, targets: Sequence[int], elapsed_s: float
) -> Iterator[str]:
    """The reasons; each check requires that the checks before it found nothing."""
    yield from _numbers(storm, request, targets)
    yield from _stamps(storm)
    yield from _order_of_sends(storm, request)
    for vcpu, receipts in enumerate(storm.receipts):
        yield from _handler(storm, request, vcpu, receipts, is_target=vcpu in targets)
    for target in targets:
        yield from _acknowledgements(storm, target)
    yield from _duration(storm, elapsed_s)


def _numbers(storm: Storm, request: StormRequest, targets: Sequence[int]) -> Iterator[str]:
    """The number of records, and the numbers in them."""
    sends = storm.sends
    if len(sends) != request.count:
        yield f"{len(sends)} sends were recorded, but {request.count} were requested"
    seq = sends["seq"].astype(np.int64)
    asked = np.arange(request.warmup, request.warmup + len(seq))
    if (i := _first(seq != asked)) is not None:
        yield f"a send has number {seq[i]} instead of {asked[i]}"
    aim = targets[0]
    if request.scenario.pattern == Pattern.BROADCAST:
        aim = ALL if request.scenario.to_all else ALL_BUT_SELF
    # The micro-guest's deliberate fault has another target.
    meant = sends["ack_tsc"] != 0 if request.inject else np.ones(len(sends), bool)
    if (i := _first((sends["target"] != aim) & meant)) is not None:
        yield f"send {seq[i]} went to vCPU {sends['target'][i]} instead of vCPU {aim}"
    if (i := _first(sends["sender"] != _SENDER)) is not None:
        yield f"send {seq[i]} came from vCPU {sends['sender'][i]}"
    unanswered = _unanswered(storm)
    if not unanswered <= storm.incomplete <= unanswered + request.warmup:
        yield (
            f"{unanswered} measured sends were not acknowledged, and with {request.warmup} of the "
            f"warm-up the guest counts {storm.incomplete}"
        )
    if storm.as_asked is not None and not 0 <= storm.as_asked <= 1:
        yield f"the share of handler entries in the requested state is {storm.as_asked:g}"
    if not len(storm.receipts) == len(storm.handled) == request.n_vcpus:
        yield f"{len(storm.receipts)} vCPUs have records, but the guest has {request.n_vcpus}"


def _stamps(storm: Storm) -> Iterator[str]:
    """Each stamp by itself; 0 means that the event did not occur."""
    for name in ("send_tsc", "sent_tsc", "ack_tsc"):
        yield from _stamps_of(name, storm.sends[name], may_lack=name == "ack_tsc")
    for receipts in storm.receipts:
        for name in ("handler_tsc", "eoi_tsc"):
            yield from _stamps_of(name, receipts[name], may_lack=name == "eoi_tsc")


def _stamps_of(name: str, stamps: NDArray[np.uint64], *, may_lack: bool) -> Iterator[str]:
    if len(stamps) and int(stamps.max()) > _LARGEST_STAMP:
        yield f"a {name} is {stamps.max()}, more cycles than any machine has run"
    if not may_lack and not stamps.all():
        yield f"a {name} is 0"


def _order_of_sends(storm: Storm, request: StormRequest) -> Iterator[str]:
    """The order of the sender's actions, which one vCPU executes sequentially."""
    seq = storm.sends["seq"]
    send, sent, ack = (_signed(storm.sends[f"{name}_tsc"]) for name in ("send", "sent", "ack"))
    if (i := _first(sent < send)) is not None:
        yield f"send {seq[i]} was over {send[i] - sent[i]} cycles before it began"
    if (i := _first((ack != 0) & (ack < sent))) is not None:
        yield f"send {seq[i]} was acknowledged {sent[i] - ack[i]} cycles before it was over"
    over = np.maximum(sent, ack)
    gap = send[1:] - over[:-1]
    least = max(request.pace_cycles - _PACE_SLACK, 1)
    if (i := _first(gap < least)) is not None:
        yield (
            f"send {seq[i + 1]} began {gap[i]} cycles after the end of the previous one, but the "
            f"pace is {request.pace_cycles}"
        )


def _handler(
    storm: Storm, request: StormRequest, vcpu: int, receipts: NDArray[np.void], *, is_target: bool
) -> Iterator[str]:
    """The handler entries of one vCPU, which are sequential."""
    n, handled = len(receipts), storm.handled[vcpu]
    if not is_target:
        if n or handled:
            yield f"vCPU {vcpu} handled {max(n, handled)} IPIs, but is not a target"
        return
    # An IPI that timed out may be in its handler at the end: recorded, but not counted yet.
    if not 0 <= n - handled <= (storm.incomplete > 0):
        yield f"vCPU {vcpu} recorded {n} handler entries but counted {handled}"
    late = storm.incomplete - _unanswered(storm)
    if n > request.count + late:
        yield f"vCPU {vcpu} handled {n} IPIs, but {request.count} were sent"
    seq = receipts["seq"]
    if (i := _first(seq[1:] != seq[:-1] + np.uint64(1))) is not None:
        yield f"on vCPU {vcpu} handler entry {seq[i + 1]} follows {seq[i]}"
    entry, end = _signed(receipts["handler_tsc"]), _signed(receipts["eoi_tsc"])
    if (i := _first(entry[1:] <= entry[:-1])) is not None:
        yield f"on vCPU {vcpu} a handler began {entry[i] - entry[i + 1]} cycles before the last one"
    if (i := _first((end != 0) & (end < entry))) is not None:
        yield f"on vCPU {vcpu} a handler's EOI came {entry[i] - end[i]} cycles before it began"
    if (i := _first(end[:-1] > entry[1:])) is not None:
        yield f"on vCPU {vcpu} a handler's EOI came {end[i] - entry[i + 1]} cycles into the next"


def _acknowledgements(storm: Storm, target: int) -> Iterator[str]:
    """Each acknowledgement belongs to a handler entry of its own, and is later than the entry.

    This is exact to the cycle if the vCPUs share a TSC: the handler's RDTSC is older than the
    store that the sender waits for, and an LFENCE orders the sender's RDTSC after the load that
    observed the store.

    In a storm without a loss, this means D at most R for each IPI. IPIs of the warm-up that timed
    out may be handled late, and be counted as an acknowledgement.
    """
    answered = storm.sends[storm.sends["ack_tsc"] != 0]
    began = _signed(storm.receipts[target]["handler_tsc"])
    entries = np.searchsorted(began, _signed(answered["ack_tsc"]), side="right")
    late = storm.incomplete - _unanswered(storm)
    needed = np.arange(1, len(answered) + 1) - late
    if (i := _first(entries < needed)) is not None:
        yield (
            f"when send {answered['seq'][i]} was acknowledged, {needed[i]} IPIs must have been "
            f"handled, but vCPU {target} had begun to handle {entries[i]}"
        )


def _duration(storm: Storm, elapsed_s: float) -> Iterator[str]:
    """The time between the stamps is not longer than the storm by the host's clock."""
    stamps = [storm.sends[name] for name in ("send_tsc", "sent_tsc", "ack_tsc")]
    stamps += [receipts[name] for receipts in storm.receipts for name in ("handler_tsc", "eoi_tsc")]
    every = _signed(np.concatenate(stamps))
    every = every[every != 0]
    cycles = int(every.max(initial=0)) - int(every.min(initial=_LARGEST_STAMP))
    khz = storm.tsc_khz or limits.TSC_KHZ[1]
    if cycles > elapsed_s * khz * 1_000 * _RATE_SLACK:
        yield (
            f"they take {cycles} cycles, {cycles / khz / 1_000:.1f} s of the guest's TSC, but the "
            f"storm took {elapsed_s:.1f} s" + _stated(storm)
        )


def _stated(storm: Storm) -> str:
    return f" (its kernel reports {storm.tsc_khz / 1_000:,.0f} MHz)" if storm.tsc_khz else ""


def _unanswered(storm: Storm) -> int:
    """Measured sends that were not acknowledged in time."""
    return int(np.count_nonzero(storm.sends["ack_tsc"] == 0))


def _signed(stamps: NDArray[np.uint64]) -> Stamps:
    return stamps.astype(np.int64)


def _first(wrong: NDArray[np.bool_]) -> int | None:
    """The index of the first wrong element."""
    return int(wrong.argmax()) if wrong.any() else None
