# SPDX-License-Identifier: Apache-2.0
"""ipitrace's programs that ran inside exits: what makes the exits longer than they are."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.events import EventIndex
from ipitrace.correlate.spans import Spans
from ipitrace.correlate.stamps import ABSENT, NEVER, Stamps
from ipitrace.correlate.weights import WEIGHED, notified
from ipitrace.words.events import Kind
from ipitrace.words.stages import Stage

IN_DELIVER: Final = np.uint32(1 << 31)
"""The bit of ExitTable.signature of an exit that overlaps an IPI's D."""

_EXIT, _ENTRY = WEIGHED.index(Kind.KVM_EXIT), WEIGHED.index(Kind.KVM_ENTRY)
_AFTER: Final = len(WEIGHED) + 1
_COLUMNS: Final = len(WEIGHED) + 2


def programs_inside(
    events: EventIndex, vcpu: int, exit_tsc: Stamps, end: Stamps
) -> NDArray[np.int32]:
    """The programs between the stamp of each exit and that of the entry which ends it.

    Args:
        events: the events of a storm.
        vcpu: the vCPU that exited.
        exit_tsc: the stamps of its exits, shape (n,).
        end: the stamps of the entries; that of the exit itself if no entry ended it.

    Returns:
        Shape (n, len(WEIGHED) + 2): by kind of event, then programs without a record, then how
        often the part of a program that follows its stamp is not included.
    """
    passed = np.zeros((len(exit_tsc), _COLUMNS), np.int32)
    for place, kind in enumerate(WEIGHED):
        tsc = events.of(vcpu, kind).tsc
        if len(tsc):
            passed[:, place] = np.searchsorted(tsc, end) - np.searchsorted(tsc, exit_tsc)
    # The exit's own program is counted above, and only its end is inside; the entry's is not.
    passed[:, _EXIT] -= 1
    passed[:, _ENTRY] += 1
    passed[end == exit_tsc] = 0
    return passed


def events_inside(inside: NDArray[np.int32]) -> NDArray[np.uint32]:
    """The kinds of event that happened in each exit, by its programs: bit k is WEIGHED[k]."""
    bits = np.zeros(len(inside), np.uint32)
    for place in range(len(WEIGHED)):
        if place not in {_EXIT, _ENTRY}:
            bits |= (inside[:, place] > 0).astype(np.uint32) << np.uint32(place)
    return bits


def programs_in_deliver(
    spans: Spans, events: EventIndex, vcpu: int, exits: tuple[Stamps, Stamps]
) -> NDArray[np.int32] | None:
    """The programs that ran in those parts of exits that lie between sends and their handlers.

    Args:
        spans: the IPIs of a storm.
        events: its events.
        vcpu: the vCPU that exited.
        exits: the stamps of its exits, and of the entries that ended them.

    Returns:
        Shape (n, len(WEIGHED) + 2), as programs_inside(); each exit's is the sum over all IPIs
        that it overlaps. None unless only the events of the stages were traced.
    """
    start, end = exits
    if spans.passed is None:
        return None
    total = np.zeros((len(start), _COLUMNS), np.int32)
    theirs = (spans.sender == vcpu) | (spans.target == vcpu)
    for sender, target in np.unique(np.stack([spans.sender, spans.target])[:, theirs], axis=1).T:
        own = (spans.sender == sender) & (spans.target == target)
        stages, at_handler = spans.tsc[own], spans.passed[own, Stage.HANDLER]
        send, handler = stages[:, Stage.SEND], stages[:, Stage.HANDLER]
        handler = np.where(handler == ABSENT, send, np.maximum(handler, send))
        handler = np.minimum(handler, np.append(send[1:], NEVER))
        at, ipis = _meeting(start, end, send, handler)
        sent, told = send[ipis], notified(stages)[ipis]
        until_handler = (handler[ipis] < end[at])[:, np.newaxis]
        late = np.where(
            until_handler, 0, _delays(events, sender, vcpu, end[at], since=sent, told=told)
        )
        late[:, :_AFTER] += np.where(until_handler, at_handler[ipis], 0)
        late[:, [_ENTRY, _AFTER]] += ~until_handler
        from_exit = (start[at] > sent)[:, np.newaxis]
        early = np.where(
            from_exit, _delays(events, sender, vcpu, start[at], since=sent, told=told), 0
        )
        early[:, [_EXIT, _AFTER]] += from_exit
        np.add.at(total, at, late - early)
    return total


def _delays(
    events: EventIndex, sender: int, vcpu: int, tsc: Stamps, *, since: Stamps, told: Stamps
) -> NDArray[np.int32]:
    """The programs since the send that delayed what a vCPU did at `tsc`.

    Args:
        events: of the storm.
        sender: the vCPU that sent.
        vcpu: the same, or the target.
        tsc: stamps of this vCPU; shape (n,), as for the others.
        since: the send of each.
        told: the target's notification.
    """
    found = np.zeros((len(tsc), _COLUMNS), np.int32)
    for place, kind in enumerate(WEIGHED):
        mine = events.of(vcpu, kind).tsc
        at = np.searchsorted(mine, tsc)
        found[:, place] = at - np.searchsorted(mine, since)
        if vcpu != sender:
            others = events.of(sender, kind).tsc
            led = np.searchsorted(others, told, side="right") - np.searchsorted(others, since)
            all_of_both = led + at - np.searchsorted(mine, told)
            found[:, place] = np.where(tsc > told, all_of_both, found[:, place])
    return found


def _meeting(
    start: Stamps, end: Stamps, send: Stamps, handler: Stamps
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs of an exit and an IPI that overlap: the exits' places and the IPIs'."""
    first = np.searchsorted(handler, start, side="right")
    n = np.maximum(np.searchsorted(send, end) - first, 0)
    exits = np.repeat(np.arange(len(start)), n)
    ipis = np.arange(len(exits)) - np.repeat(np.cumsum(n) - n, n) + np.repeat(first, n)
    inside = handler[ipis] > send[ipis] if len(ipis) else np.zeros(0, np.bool_)
    return exits[inside], ipis[inside]
