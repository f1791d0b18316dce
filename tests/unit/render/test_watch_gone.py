# SPDX-License-Identifier: Apache-2.0
"""What is kept of VMs that have ended, and of vCPUs that nobody watched."""

from dataclasses import replace

from hostile import SAMPLES
from test_watch_text import interval, vm

from ipitrace.render.watch.gone import ended_words
from ipitrace.render.watch.openmetrics import render_openmetrics
from ipitrace.render.watch.text import render_interval
from ipitrace.tracer.counting import Noted
from ipitrace.watch.ended import Ended
from ipitrace.watch.model import (
    MOST_ENDED,
    MOST_STRANGERS,
    Count,
    EndedRest,
    EndedVm,
    Pending,
    Unseen,
)
from ipitrace.watch.unseen import Strangers


def ended_vm(name: str, ipis: int) -> EndedVm:
    return EndedVm(replace(vm(name), ipis=Count(ipis, ipis)), "its process has ended")


class Programs:
    """What they note of threads without a slot; a total never falls."""

    def __init__(self) -> None:
        self.sends = self.threads = 0

    def noted(self, of_thread: dict[tuple[int, int], int], n_dropped: int = 0) -> Noted:
        """Each dropped thread has sent once."""
        self.sends += sum(of_thread.values()) + n_dropped
        self.threads += len(of_thread) + n_dropped
        return Noted(self.sends, self.threads, of_thread)


def test_the_largest_are_kept_and_the_others_are_a_sum() -> None:
    ended, n = Ended(), 500
    for i in range(n):
        ended.add([ended_vm(f"guest{i}", i), ended_vm(f"idle{i}", 0)])
    kept = [one.vm.ipis.total for one in ended.kept]
    assert kept == list(range(n - 1, n - 1 - MOST_ENDED, -1))
    assert ended.rest.vms == 2 * n - MOST_ENDED
    assert sum(kept) + ended.rest.ipis == sum(range(n))


def test_a_thread_is_gone_watched_or_waited_for() -> None:
    living = {(7, 70), (8, 80)}
    programs, strangers = Programs(), Strangers(living.__contains__)
    seen = strangers.update(
        programs.noted({(7, 70): 5, (8, 80): 3, (9, 90): 100, (9, 91): 0}), lambda: ()
    )
    assert seen == Unseen(Count(108, 108), Count(2, 2), Count(100, 100), Count(0, 0))
    living.remove((7, 70))
    assert strangers.update(programs.noted({}), lambda: {80}) == Unseen(
        Count(0, 108), Count(1, 3), Count(5, 105)
    )
    living.clear()  # the other was watched by then, so nothing of it is lost
    assert strangers.update(programs.noted({}), lambda: ()) == Unseen(
        Count(0, 108), Count(0, 3), Count(0, 105)
    )
    assert strangers.whole() == Unseen(Count(108, 108), Count(3, 3), Count(105, 105))


def test_threads_without_an_end_take_bounded_memory() -> None:
    programs, strangers = Programs(), Strangers(lambda _thread: True)
    for i in range(3):
        strangers.update(
            programs.noted({(1, i * MOST_STRANGERS + n): 1 for n in range(MOST_STRANGERS)}), set
        )
    assert len(strangers._waiting) == MOST_STRANGERS
    assert strangers.whole().sends.total == 3 * MOST_STRANGERS
    assert strangers.whole().overflows.total == 2


def test_more_threads_than_can_be_followed_are_reported() -> None:
    """Those that end at once are counted all the same, and what has been followed still is."""
    living = {(1, n): 1 for n in range(MOST_STRANGERS - 1)}
    programs, strangers = Programs(), Strangers(living.__contains__)
    seen = strangers.update(programs.noted(living), set)
    assert seen.overflows == Count(0, 0)
    short = {(2, 0): 7, (3, 0): 9}
    seen = strangers.update(programs.noted(short), set)
    assert (seen.threads, seen.gone_sends) == (Count(2, 2), Count(16, 16))
    assert seen.overflows == Count(0, 0)
    living |= short
    seen = strangers.update(programs.noted(short), set)
    assert (seen.threads, seen.overflows) == (Count(0, 2), Count(1, 1))
    living.clear()
    seen = strangers.update(programs.noted({}), set)
    assert seen.threads == Count(MOST_STRANGERS, MOST_STRANGERS + 2)
    assert seen.overflows == Count(0, 1)


def test_what_the_kernel_has_dropped_is_reported() -> None:
    programs, strangers = Programs(), Strangers(lambda _thread: False)
    seen = strangers.update(programs.noted({(n, n): 0 for n in range(9)}, n_dropped=3), set)
    assert (seen.threads.total, seen.sends.total, seen.overflows.total) == (9, 3, 1)
    seen = strangers.update(programs.noted({(1, 1): 5}), set)
    assert (seen.threads.total, seen.sends.total, seen.overflows.total) == (10, 8, 1)


def test_what_ended_and_what_was_not_seen_is_said() -> None:
    gone = replace(
        interval(),
        ended=("guest1 (pid 4711): its process has ended",),
        ended_vms=(ended_vm("guest1", 20_000),),
        ended_rest=EndedRest(3, 12),
        departed=20_012,
        unseen=Unseen(Count(9, 900), Count(1, 1), Count(8, 800), Count(0, 2)),
        pending=Pending(3, 4000),
        departed_vms=7,
    )
    text = " ".join(render_interval(gone).split())
    assert "guest1 (pid 4711): its process has ended; watched for 7.0 s: 20,000 sends" in text
    assert "0 -> 1 0xfd fixed msr-exit 10,000" in text
    assert "3 more pairs 40" in text
    assert "3 more VMs that have ended, 12 IPIs" in text
    assert "20,012 IPIs in VMs that have ended" in text
    assert "900 sends by vCPU threads for which no slot was free" in text
    assert "pending 3 vCPU threads whose VM has not been examined yet: 4,000 sends so far" in text
    assert "1 vCPU thread came and went between two samples" in text
    assert "more vCPU threads than can be followed (1,024) had no slot, 2 times: " in text
    screen = " ".join(render_interval(gone, width=80, height=24).split())
    assert "guest1 (pid 4711): its process has ended" in screen
    assert "the summary has their pairs" in screen
    metrics = render_openmetrics(gone)
    assert "ipitrace_watch_ended_ipis_total 20012\n" in metrics
    assert "ipitrace_watch_ended_vms_total 7\n" in metrics
    assert "ipitrace_watch_pending_vcpu_threads 3\n" in metrics
    assert "ipitrace_watch_unseen_sends_total 900\n" in metrics
    assert "ipitrace_watch_unseen_vcpu_threads_total 1\n" in metrics
    assert "ipitrace_watch_unseen_overflows_total 2\n" in metrics
    assert "unseen" not in render_interval(interval())
    assert "pending" not in render_interval(interval())


def test_a_vm_that_was_never_examined_is_known_by_its_threads() -> None:
    one = replace(ended_vm("pid:4711", 20_000), comm="x\x1b[2J", threads=(70, 71))
    (text, *_) = ended_words(replace(interval(), ended_vms=(one,)), brief=False)
    assert text.startswith(r"pid:4711 (pid 4711, x\x1b[2J, user ")
    assert "2 vCPU threads, first seen 7.0 s ago: 20,000 sends" in text
    assert "tid 0 -> 1 0xfd fixed msr-exit 10,000" in text


def test_the_name_of_a_vm_that_has_ended_does_nothing() -> None:
    for sample in SAMPLES:
        one = replace(interval(), ended_vms=(ended_vm(sample, 1),))
        for text in ended_words(one, brief=False):
            assert text.isprintable(), sample
