# SPDX-License-Identifier: Apache-2.0
"""VMs that have ended and vCPU threads that were never watched, as text."""

from collections.abc import Iterator
from typing import Final

from ipitrace.base.foreign import plain_values
from ipitrace.watch.model import MOST_STRANGERS, EndedVm, Unseen, WatchInterval

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
    pairs = [
        f"{pair.sender} -> {'?' if pair.target is None else pair.target} {pair.vector:#04x} "
        f"{pair.mode} {pair.path} {pair.ipis.total:,}"
        for pair in vm.pairs[:_MOST_PAIRS]
    ]
    unlisted = vm.pairs[_MOST_PAIRS:]
    n_pairs = len(unlisted) + vm.pairs_left_out.pairs
    if n_pairs:
        ipis = sum(pair.ipis.total for pair in unlisted) + vm.pairs_left_out.ipis.total
        pairs.append(f"{n_pairs:,} more pairs {ipis:,}")
    return (
        f"{vm.name} (pid {vm.pid}): {one.why}; watched for {vm.watched_s:.1f} s: "
        f"{vm.sends.total:,} sends, {bound}{vm.ipis.total:,} IPIs"
        + (f": {', '.join(pairs)}" if pairs else "")
    )


def unseen_words(unseen: Unseen) -> Iterator[str]:
    """Sentences about sends that were not counted; since `watch` began, as the other totals."""
    sends, threads = unseen.sends.total, unseen.threads.total
    if sends:
        yield (
            f"at least {sends:,} sends by vCPUs before they were watched, or never watched: "
            "no other number includes them"
        )
    if threads:
        which, were = ("thread", "was") if threads == 1 else ("threads", "were")
        yield (
            f"{threads:,} vCPU {which} came and went between two samples and {were} never watched, "
            f"with {unseen.gone_sends.total:,} of these sends; a shorter --interval may find more"
        )
    if unseen.overflows.total:
        times = "once" if unseen.overflows.total == 1 else f"{unseen.overflows.total:,} times"
        yield (
            f"more vCPU threads than can be followed ({MOST_STRANGERS:,}) were not watched, {times}"
            ": more may have come and gone, and sent, than is counted"
        )
