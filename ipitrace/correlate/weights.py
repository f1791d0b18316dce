# SPDX-License-Identifier: Apache-2.0
"""How many of ipitrace's programs ran on an IPI's way, and how far two of them are apart.

A program that runs for a host event delays all that comes after it in the same thread. An IPI
is delayed by the programs of the sender's thread until its target is notified, and from then on
by those of the target's thread.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.events import EventIndex
from ipitrace.correlate.stamps import ABSENT, Stamps
from ipitrace.words.events import Kind
from ipitrace.words.stages import STAGE_KINDS, STAGES, Stage

WEIGHED: Final = tuple(sorted(STAGE_KINDS))
"""The kinds of event whose programs are counted, in order."""

_OF_SENDER = np.array([spec.side == "sender" and spec.stage != Stage.ACK for spec in STAGES])
_AFTER_IDLE = np.arange(len(Stage)) >= Stage.SCHED_IN
_IN, _IDLE = 1, 0  # detail of sched_switch, and the idle task's tid
_MOST: Final = np.iinfo(np.uint8).max
_QUARTILES: Final = (25, 75)


@dataclass(frozen=True)
class TwinDistance:
    """The distance of the stamps of two copies of one program at the same event.

    It is what one copy takes from its own stamp to its end, and what the next one takes from its
    begin to its stamp: all that a program costs, without the tracepoint around it.

    Attributes:
        pairs: events with a stamp of both.
        ns: the mean of the middle half of the distances. A stamp is a whole number of ns.
    """

    pairs: int
    ns: float


def programs_passed(
    events: EventIndex, low: Stamps, tsc: NDArray[np.int64], *, sender: int, target: int
) -> NDArray[np.uint8]:
    """The programs that ran between the send and each stage, by kind of event.

    Args:
        events: the host events of a storm.
        low: the begin of each IPI's window, shape (n,).
        tsc: the stages of the IPIs to one target, shape (n, len(Stage)).
        sender: the vCPU that sends.
        target: the vCPU to which they are sent.

    Returns:
        Shape (n, len(Stage), len(WEIGHED) + 1). The program of a stage's own event is not
        included, nor are those of stages that are ABSENT. Counts above 255 become 255. The
        last column has programs that made no record, because they ran in the idle task of the
        target's CPU: the one of the host's interrupt that ended it.
    """
    by_sender = np.broadcast_to(_OF_SENDER, tsc.shape).copy()
    by_sender[:, Stage.ACK] = tsc[:, Stage.SENT] > tsc[:, Stage.HANDLER]
    if target == sender:
        by_sender[:] = True
    told = notified(tsc)[:, np.newaxis]
    passed = np.zeros((*tsc.shape, len(WEIGHED) + 1), np.int64)
    passed[:, :, -1] = _idle_ended(events, tsc, target)[:, np.newaxis] & _AFTER_IDLE & ~by_sender
    for place, kind in enumerate(WEIGHED):
        own, others = events.of(sender, kind).tsc, events.of(target, kind).tsc
        if not len(own) and not len(others):
            continue
        begun = np.searchsorted(own, low[:, np.newaxis])
        alone = np.searchsorted(own, tsc) - begun
        first = np.searchsorted(own, told, side="right") - begun
        then = np.searchsorted(others, tsc) - np.searchsorted(others, told)
        passed[:, :, place] = np.where(by_sender, alone, first + np.maximum(then, 0))
    passed[tsc == ABSENT] = 0
    return np.clip(passed, 0, _MOST).astype(np.uint8)


def _idle_ended(events: EventIndex, tsc: NDArray[np.int64], target: int) -> NDArray[np.bool_]:
    """Whether the target's CPU was interrupted in its idle task, and then ran the target."""
    switches = events.of(target, Kind.SCHED_SWITCH)
    from_idle = switches.tsc[(switches["detail"] == _IN) & (switches["word"] == _IDLE)]
    kicked = (tsc[:, Stage.KICK] != ABSENT) & (tsc[:, Stage.TARGET_INTERRUPT] == ABSENT)
    return np.asarray(kicked & np.isin(tsc[:, Stage.SCHED_IN], from_idle))


def notified(tsc: NDArray[np.int64]) -> Stamps:
    """The sender's last event that precedes the notification of the target; the send if none."""
    found = tsc[:, Stage.SEND]
    for stage in (Stage.IPI, Stage.ACCEPT, Stage.KICK):
        found = np.where(tsc[:, stage] == ABSENT, found, tsc[:, stage])
    return np.asarray(found, np.int64)


def twin_distances(
    first: NDArray[np.void], second: NDArray[np.void]
) -> Mapping[Kind, TwinDistance]:
    """The distances of two tracers' stamps of the same events, by kind.

    Args:
        first: host events (abi.events.HOST_EVENT) of the programs that run first.
        second: of the programs that run right after them.
    """
    found = {}
    for kind in WEIGHED:
        ns = np.concatenate(
            [
                _distances(_stamps(first, kind, vcpu), _stamps(second, kind, vcpu))
                for vcpu in np.unique(first["vcpu"])
            ]
            or [np.empty(0, np.int64)]
        )
        if len(ns):
            low, high = np.percentile(ns, _QUARTILES, method="inverted_cdf")
            found[kind] = TwinDistance(len(ns), float(ns[(ns >= low) & (ns <= high)].mean()))
    return found


def _stamps(events: NDArray[np.void], kind: Kind, vcpu: int) -> NDArray[np.int64]:
    chosen = (events["kind"] == kind) & (events["vcpu"] == vcpu)
    return np.sort(events["ts_ns"][chosen].astype(np.int64))


def _distances(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """From each stamp to the next one of the other tracer, if it comes before its own next."""
    at = np.searchsorted(second, first)
    inside = at < len(second)
    after = second[np.minimum(at, max(len(second) - 1, 0))] if len(second) else first
    following = np.append(first[1:], np.iinfo(np.int64).max)
    return np.asarray((after - first)[inside & (after < following)], np.int64)
