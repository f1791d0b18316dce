# SPDX-License-Identifier: Apache-2.0
"""VMs that have ended and vCPU threads that were never watched, as text."""

from collections.abc import Iterator
from typing import Final

from ipitrace.base.foreign import plain_values
from ipitrace.watch.model import (
    MOST_STRANGERS,
    EndedVm,
    Pending,
    Unseen,
    WatchInterval,
)

_MOST_PAIRS: Final = 8  # of each VM


def ended_words(interval: WatchInterval, *, brief: bool) -> Iterator[str]:
    """Sentences about VMs that have ended; with `brief`, without their pairs.

    An interval reports the VMs that ended in it. The summary reports the largest of all.
    """
    if brief or not interval.ended_vms:
        yield from interval.ended  # plain already
    else:
        for one in interval.ended_vms:
            yield _ended(plain_values(one))
        if interval.ended_rest.vms:
            rest = interval.ended_rest
            yield f"{rest.vms:,} more VMs that have ended, {rest.ipis:,} IPIs"
    if interval.departed:
        where = "; the summary has their pairs" if brief else ""
        yield f"{interval.departed:,} IPIs in VMs that have ended{where}"


def _ended(one: EndedVm) -> str:
    vm = one.vm
    bound = "" if vm.visibility.complete else ">="
    sender = "tid " if one.threads else ""
    pairs = [
        f"{sender}{pair.sender} -> {'?' if pair.target is None else pair.target} "
        f"{pair.vector:#04x} {pair.mode} {pair.path} {pair.ipis.total:,}"
        for pair in vm.pairs[:_MOST_PAIRS]
    ]
    unlisted = vm.pairs[_MOST_PAIRS:]
    n_pairs = len(unlisted) + vm.pairs_left_out.pairs
    if n_pairs:
        ipis = sum(pair.ipis.total for pair in unlisted) + vm.pairs_left_out.ipis.total
        pairs.append(f"{n_pairs:,} more pairs {ipis:,}")
    if one.threads:
        who = f"pid {vm.pid}, {one.comm}, user {vm.uid}"
        seen = f"{_threads(len(one.threads))}, first seen {vm.watched_s:.1f} s ago"
    else:
        who, seen = f"pid {vm.pid}", f"watched for {vm.watched_s:.1f} s"
    return (
        f"{vm.name} ({who}): {one.why}; {seen}: "
        f"{vm.sends.total:,} sends, {bound}{vm.ipis.total:,} IPIs"
        + (f": {', '.join(pairs)}" if pairs else "")
    )


def _threads(n: int) -> str:
    return "1 vCPU thread" if n == 1 else f"{n:,} vCPU threads"


def pending_words(pending: Pending) -> Iterator[str]:
    """A sentence about threads whose VM is not known yet."""
    if pending.threads:
        yield (
            f"{_threads(pending.threads)} whose VM has not been examined yet: "
            f"{pending.sends:,} sends so far, which are counted for it"
        )


def unseen_words(unseen: Unseen) -> Iterator[str]:
    """Sentences about sends that were not counted; since `watch` began, as the other totals."""
    sends, threads = unseen.sends.total, unseen.threads.total
    if sends:
        yield (
            f"{sends:,} sends by vCPU threads for which no slot was free: "
            "no other number includes them"
        )
    if threads:
        yield (
            f"{_threads(threads)} came and went between two samples and never had a slot, "
            f"with {unseen.gone_sends.total:,} of these sends; a shorter --interval may find more"
        )
    if unseen.overflows.total:
        times = "once" if unseen.overflows.total == 1 else f"{unseen.overflows.total:,} times"
        yield (
            f"more vCPU threads than can be followed ({MOST_STRANGERS:,}) had no slot, {times}"
            ": more may have come and gone than is counted"
        )
