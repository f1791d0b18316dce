# SPDX-License-Identifier: Apache-2.0
"""Properties of correlate() on storms whose truth is known."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from host_models import MODELS, VECTOR, Happening, cpu_of
from hypothesis import given
from hypothesis import strategies as st
from made_up import SEEDS, Story, differences, same, stories, tell

from ipitrace.correlate.spans import StormTrace, correlate
from ipitrace.correlate.stamps import ABSENT
from ipitrace.words.events import Kind
from ipitrace.words.exit_reasons import Isa
from ipitrace.words.paths import IpiPath
from ipitrace.words.stages import GUEST_STAMPS, HV_SENDS, Stage


def assert_true(story: Story, trace: StormTrace | None = None) -> None:
    spans = correlate(story.trace if trace is None else trace)
    assert differences(spans.tsc, story.tsc) == []
    assert spans.path.tolist() == story.path.tolist()
    assert spans.sender_exits.tolist() == story.sender_exits.tolist()
    assert spans.target_exits.tolist() == story.target_exits.tolist()
    assert spans.unmatched_ipis == 0
    assert spans.unmatched_events == {}
    assert not spans.suspect.any()


@pytest.mark.parametrize("name", MODELS)
@given(seed=SEEDS, targets=st.integers(1, 3), pinned=st.booleans())
def test_every_stage_of_every_kind_of_host_is_found(
    name: str, seed: int, targets: int, *, pinned: bool
) -> None:
    assert_true(tell(name, 5, seed, targets=targets, pinned=pinned))


@given(stories())
def test_neither_pace_nor_bound_matters_while_the_clock_is_right(story: Story) -> None:
    assert_true(story)


@given(stories(), st.randoms(use_true_random=False))
def test_the_order_of_events_does_not_matter(story: Story, random: Random) -> None:
    shuffled = list(story.happenings)
    random.shuffle(shuffled)
    assert same(correlate(story.with_events(shuffled)), correlate(story.trace))


@given(stories(), SEEDS)
def test_events_told_twice_change_no_span_and_are_counted(story: Story, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # an exit told twice is two exits, as far as counting goes
    twice = [h for h in story.happenings if h.kind != Kind.KVM_EXIT and rng.random() < 0.5]
    spans = correlate(story.with_events([*story.happenings, *twice]))
    assert same(spans, correlate(story.trace))
    carrying = {Kind.KVM_APIC_IPI, Kind.KVM_APIC_ACCEPT_IRQ, Kind.KVM_APICV_ACCEPT_IRQ, *HV_SENDS}
    counts: dict[str, int] = {}
    for h in twice:
        if h.kind in carrying | {Kind.KVM_INJ_VIRQ}:
            name = h.kind.name.lower()
            counts[name] = counts.get(name, 0) + 1
    assert spans.unmatched_events == counts


@given(stories(), SEEDS)
def test_other_vcpus_and_other_vectors_change_nothing(story: Story, seed: int) -> None:
    rng = np.random.default_rng(seed)
    start, end = int(story.trace.event_tsc.min(initial=1 << 40)), int(story.over[-1])
    foreign = [  # a second VM's, doing just the same a little later
        replace(h, vcpu=h.vcpu + 20, tsc=h.tsc + int(rng.integers(0, 5000)))
        for h in story.happenings
    ]
    timer = 0xEC
    for tsc in rng.integers(start - 1000, end + 1000, 60).tolist():
        vcpu = int(rng.integers(0, 4))
        kind, more = [
            (Kind.KVM_APIC_IPI, {"word": timer}),
            (Kind.KVM_APIC_IPI, {"word": VECTOR | 0x400}),  # an NMI has no vector
            (Kind.KVM_APIC_ACCEPT_IRQ, {"detail": timer, "word": vcpu}),
            (Kind.KVM_APICV_ACCEPT_IRQ, {"detail": timer, "word": vcpu}),
            (Kind.KVM_INJ_VIRQ, {"detail": timer}),
            (Kind.KVM_EOI, {"detail": timer}),
            (Kind.KVM_PV_EOI, {"detail": timer}),
            (Kind.KVM_MSR, {"detail": 1, "word": 0x830, "arg": timer}),
            (Kind.KVM_MSR, {"detail": 0, "word": 0x830, "arg": VECTOR}),  # a read
            (Kind.KVM_MSR, {"detail": 3, "word": 0x830, "arg": VECTOR}),  # refused
            (Kind.KVM_APIC, {"detail": 1, "word": 0x310, "arg": VECTOR}),  # ICR's high half
            (Kind.KVM_APIC, {"detail": 1, "word": 0x300, "arg": timer}),
            (Kind.IPI_SEND_CPU, {"word": 99}),
            (Kind.KVM_AVIC_DOORBELL, {"word": 1, "detail": 99}),
            (Kind.SCHED_SWITCH, {"detail": 0}),
            (Kind.KVM_HV_SEND_IPI, {"detail": timer, "arg": 2}),
            (Kind.KVM_HV_SEND_IPI_EX, {"detail": timer, "word": 1}),
            (Kind.KVM_AVIC_UNACCELERATED_ACCESS, {"detail": 3, "word": 0x310}),
            (Kind.KVM_AVIC_UNACCELERATED_ACCESS, {"detail": 0, "word": 0x300}),  # a read
            (Kind.KVM_VMGEXIT_ENTER, {"word": 0x72, "arg": 1}),  # CPUID
            (Kind.KVM_VMGEXIT_ENTER, {"word": 0x7C, "arg": 0}),  # a read
        ][int(rng.integers(0, 21))]
        foreign.append(Happening(tsc, vcpu, kind, -1, **more))
    assert_true(story, story.with_events([*story.happenings, *foreign]))


_LESS_EXACT = {IpiPath.MSR_FASTPATH: IpiPath.MSR_EXIT} | dict.fromkeys(
    (
        IpiPath.AVIC_INVALID_TYPE,
        IpiPath.AVIC_NOT_RUNNING,
        IpiPath.AVIC_INVALID_TARGET,
        IpiPath.AVIC_INVALID_PAGE,
        IpiPath.AVIC_INVALID_VECTOR,
    ),
    IpiPath.AVIC_INCOMPLETE,
)
"""What the exit alone proves."""
_VECTORED = {Stage.IPI, Stage.ACCEPT, Stage.APICV_ACCEPT, Stage.INJECT, Stage.KVM_EOI}


@given(stories(min_size=2), SEEDS, st.sampled_from([0.05, 0.3, 0.7]))
def test_lost_events_leave_gaps_and_no_lies(story: Story, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    kept = [h for h in story.happenings if rng.random() >= share]
    spans = correlate(story.with_events(kept, complete=False))
    m = len(story.trace.targets)
    own: dict[int, set[int]] = {}
    for h in kept:
        own.setdefault(h.ipi, set()).add(h.tsc)
    for row, column in np.argwhere((spans.tsc != story.tsc) & (spans.tsc != ABSENT)):
        stage = Stage(column)
        assert stage not in GUEST_STAMPS | _VECTORED, differences(spans.tsc, story.tsc)
        assert int(spans.tsc[row, column]) in own[row // m], differences(spans.tsc, story.tsc)
    for found, true in zip(spans.path.tolist(), story.path.tolist(), strict=True):
        assert found in {true, IpiPath.UNKNOWN, _LESS_EXACT.get(true)}
    assert all(spans.sender_exits <= story.sender_exits)
    assert all(spans.target_exits <= story.target_exits)
    assert spans.unmatched_events == {}


def _losing(story: Story, *stages: Stage) -> StormTrace:
    gone = set(story.tsc[:, list(stages)].reshape(-1).tolist())
    return story.with_events([h for h in story.happenings if h.tsc not in gone], complete=False)


def test_the_entry_after_the_handlers_own_exit_does_not_stand_in_for_a_lost_one() -> None:
    spans = correlate(_losing(tell("vmx", 4, 1, bound=30_000), Stage.TARGET_ENTRY))
    assert (spans.stage(Stage.TARGET_ENTRY) == ABSENT).all()


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("xapic-access", [Stage.SENDER_EXIT]),  # its other store's exit was over
        ("vmx-self", [Stage.SENDER_EXIT, Stage.SENDER_ENTRY]),  # its EOI's comes after
    ],
)
def test_another_exit_does_not_stand_in_for_a_lost_one(name: str, stages: list[Stage]) -> None:
    spans = correlate(_losing(tell(name, 4, 1), *stages))
    assert (spans.stage(Stage.SENDER_EXIT) == ABSENT).all()
    assert spans.path.tolist() == [IpiPath.UNKNOWN] * 4


def test_an_ipi_to_the_targets_cpu_after_the_send_is_no_kick() -> None:
    story = tell("emulated-halted", 9, 4)
    sent, handler = story.tsc[:, Stage.SENT], story.tsc[:, Stage.HANDLER]
    slow = handler > sent + 1
    assert slow.any()
    later = [
        Happening(tsc + 1, 0, Kind.IPI_SEND_CPU, -1, word=cpu_of(1)) for tsc in sent[slow].tolist()
    ]
    kicked = [h for h in story.happenings if h.kind != Kind.IPI_SEND_CPU]
    spans = correlate(story.with_events([*kicked, *later]))
    assert (spans.stage(Stage.KICK) == ABSENT).all()


@given(stories(min_size=2, names=["emulated", "emulated-halted", "emulated-self"]), st.data())
def test_an_ipi_without_any_event_is_counted(story: Story, data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.integers(0, len(story.over) - 1)))
    kept = [h for h in story.happenings if h.ipi not in gone]
    spans = correlate(story.with_events(kept, complete=False))
    assert spans.unmatched_ipis == len(gone) * len(story.trace.targets)


@given(stories(), st.data())
def test_events_with_the_vector_and_no_send_are_counted(story: Story, data: st.DataObject) -> None:
    strays = [
        (Kind.KVM_APIC_IPI, 0, {"word": VECTOR}),
        (Kind.KVM_HV_SEND_IPI, 0, {"detail": VECTOR}),
        (Kind.KVM_HV_SEND_IPI_EX, 0, {"detail": VECTOR}),
        (Kind.KVM_APIC_ACCEPT_IRQ, 0, {"detail": VECTOR, "word": story.trace.targets[0]}),
        (Kind.KVM_APICV_ACCEPT_IRQ, 0, {"detail": VECTOR, "word": story.trace.targets[0]}),
        (Kind.KVM_INJ_VIRQ, story.trace.targets[0], {"detail": VECTOR}),
    ]
    start = int(story.trace.sends["send_tsc"][0]) - story.trace.bound_cycles
    extra, counts = [], {}
    for kind, vcpu, more in strays:
        n = data.draw(st.integers(0, 3))
        extra += [Happening(start - 1 - i, vcpu, kind, -1, **more) for i in range(n)]
        if n:
            counts[kind.name.lower()] = n
    spans = correlate(story.with_events([*extra, *story.happenings]))
    assert differences(spans.tsc, story.tsc) == []
    assert spans.unmatched_events == counts


@given(
    st.sampled_from(sorted(MODELS)),
    SEEDS,
    st.sampled_from([20_000, 2**32 - 9_000, 7 * 2**32 - 1, 2**63 - 10_000_000, 2**63 + 2**20]),
)
def test_the_tsc_may_be_anywhere(name: str, seed: int, base: int) -> None:
    signed = base - 2**64 if base >= 2**63 else base
    assert_true(tell(name, 4, seed, base=signed, bound=1000))


@given(st.sampled_from(sorted(MODELS)), SEEDS, st.integers(-9_999, 9_999), st.integers(1, 3))
def test_a_clock_that_is_off_by_its_bound_loses_nothing(
    name: str, seed: int, error: int, targets: int
) -> None:
    story = tell(name, 4, seed, pace=40_000, bound=10_000, targets=targets)
    off = [replace(h, tsc=h.tsc + error) for h in story.happenings]
    host = [s for s in Stage if s not in GUEST_STAMPS]
    tsc = story.tsc.copy()
    tsc[:, host] = np.where(tsc[:, host] == ABSENT, ABSENT, tsc[:, host] + error)
    assert_true(replace(story, tsc=tsc), story.with_events(off))


@given(SEEDS, st.sets(st.integers(0, 5), min_size=1), st.sampled_from(["emulated", "vmx", "svm"]))
def test_ipis_that_were_lost_take_nothing_from_the_others(
    seed: int, lost: set[int], name: str
) -> None:
    assert_true(tell(name, 6, seed, lost=frozenset(lost), bound=500))


def test_two_sends_that_merged_leave_one_handler() -> None:
    """The second finds the first still pending: one injection, one entry, for the second."""
    story = tell("vmx", 3, 7, pace=5_000)
    handled = story.trace.receipts[1][[0, 2]]
    kept = [h for h in story.happenings if h.vcpu == 0 or h.ipi != 1]
    spans = correlate(replace(story.with_events(kept), receipts=(handled[:0], handled)))
    assert (spans.stage(Stage.HANDLER) == ABSENT).tolist() == [False, True, False]
    expected = story.tsc.copy()
    of_target = [Stage.TARGET_INTERRUPT, Stage.TARGET_EXIT, Stage.INJECT, Stage.TARGET_ENTRY]
    expected[1, [*of_target, Stage.KVM_EOI, Stage.HANDLER, Stage.EOI]] = ABSENT
    assert differences(spans.tsc, expected) == []


def test_a_halt_shortly_before_the_send_is_no_exit_for_it() -> None:
    """Neither while the sender's side is seen, nor where nothing of it can be."""
    for name, isa, halt in (
        ("vmx-halted", Isa.VMX, 12),
        ("exitless-halted", Isa.VMX, 12),
        ("exitless-idle-halted", Isa.SVM, 0x78),
        ("exitless-idle-halted", Isa.SVM, 0xA6),  # idle HLT
        ("exitless-idle-halted", Isa.SVM, 0x403),  # SEV-ES
    ):
        story = tell(name, 4, 3, pace=4_000, bound=6_000)
        sends = story.trace.sends["send_tsc"].astype(np.int64).tolist()
        late = [Happening(s - 5, 1, Kind.KVM_EXIT, -1, detail=isa, word=halt) for s in sends]
        early = [h for h in story.happenings if not (h.kind == Kind.KVM_EXIT and h.word == halt)]
        spans = correlate(story.with_events([*early, *late]))
        assert differences(spans.tsc, story.tsc) == []


def test_a_kick_of_another_cpu_is_not_the_targets() -> None:
    story = tell("vmx", 3, 5, pinned=False)
    others = [
        replace(h, tsc=h.tsc - 1, word=cpu_of(9))
        for h in story.happenings
        if h.kind == Kind.IPI_SEND_CPU
    ]
    assert_true(story, story.with_events([*others, *story.happenings]))


def test_an_interrupt_that_hits_the_sender_before_its_send_is_not_the_sends_exit() -> None:
    story = tell("vmx", 3, 11, bound=3_000, pace=9_000)
    noise = []
    for send in story.trace.sends["send_tsc"].astype(np.int64).tolist():
        noise += [
            Happening(send - 900, 0, Kind.KVM_EXIT, -1, detail=Isa.VMX, word=32),  # TSC deadline
            Happening(send - 300, 0, Kind.KVM_ENTRY, -1),
        ]
    spans = correlate(story.with_events([*noise, *story.happenings]))
    assert differences(spans.tsc, story.tsc) == []
    assert (spans.sender_exits == story.sender_exits + 1).all()


@pytest.mark.parametrize(("arg", "path"), [(0x300, IpiPath.APIC_WRITE), (0x380, IpiPath.UNKNOWN)])
def test_an_apic_write_exit_proves_a_send_only_if_it_was_the_icr(arg: int, path: IpiPath) -> None:
    story = tell("exitless", 1, 2)
    send = int(story.trace.sends["send_tsc"][0])
    write = Happening(send + 50, 0, Kind.KVM_EXIT, 0, detail=Isa.VMX, word=56, arg=arg)
    timer = Happening(send + 60, 0, Kind.KVM_EXIT, 0, detail=Isa.VMX, word=32)
    spans = correlate(story.with_events([write, timer], exits_fire=True))
    assert spans.path.tolist() == [path]


@pytest.mark.parametrize(
    ("isa", "reason"),
    [(Isa.VMX, 18), (Isa.VMX, 32), (Isa.VMX, 48), (Isa.SVM, 0x7C), (Isa.SVM, 0x400)],
)
def test_an_exit_that_can_be_anything_proves_nothing_alone(isa: int, reason: int) -> None:
    story = tell("exitless", 1, 2)
    send = int(story.trace.sends["send_tsc"][0])
    alone = Happening(send + 50, 0, Kind.KVM_EXIT, 0, detail=isa, word=reason)
    spans = correlate(story.with_events([alone]))
    assert spans.path.tolist() == [IpiPath.UNKNOWN]
    assert spans.stage(Stage.SENDER_EXIT).tolist() == [ABSENT]


@pytest.mark.parametrize("name", ["pv-hypercall", "hv-hypercall", "hv-hypercall-ex"])
def test_the_exit_of_a_hypercall_does_not_show_whose_hypercall_it_was(name: str) -> None:
    story = tell(name, 3, 2)
    sends = {Kind.KVM_HYPERCALL, *HV_SENDS}
    kept = [h for h in story.happenings if h.kind not in sends]
    assert correlate(story.with_events(kept)).path.tolist() == [IpiPath.UNKNOWN] * 3


def test_nothing_is_exitless_when_exits_are_not_told() -> None:
    story = tell("exitless", 3, 2)
    unseen = correlate(replace(story.trace, exits_fire=False))
    assert unseen.path.tolist() == [IpiPath.UNKNOWN] * 3
    assert {*unseen.sender_exits.tolist(), *unseen.target_exits.tolist()} == {ABSENT}
    assert unseen.unmatched_ipis == 3
    assert correlate(replace(story.trace, complete=False)).path.tolist() == [IpiPath.UNKNOWN] * 3
    assert correlate(story.trace).unmatched_ipis == 0


@given(stories(), st.data())
def test_a_span_is_suspect_where_an_interval_touches_it(story: Story, data: st.DataObject) -> None:
    sends = story.trace.sends["send_tsc"].astype(np.int64)
    m = len(story.trace.targets)
    one = data.draw(st.integers(0, len(sends) - 1))
    within = int(data.draw(st.integers(int(sends[one]), int(story.tsc[one * m, Stage.SENT]))))
    spans = correlate(replace(story.trace, suspect=[(within, within)]))
    assert (np.flatnonzero(spans.suspect) // m == one).all()
    assert spans.suspect.any()
    before, after = int(sends[0]) - 40_000, int(story.over[-1]) + 40_000
    away = [(before - 9, before), (after, after + 9)]
    assert not correlate(replace(story.trace, suspect=away)).suspect.any()
    assert correlate(replace(story.trace, suspect=[(before, after)])).suspect.all()


def test_apic_ids_need_not_be_the_vcpus_numbers() -> None:
    story = tell("vmx", 3, 5, targets=3)
    ids = (0, 4, 8, 12)
    renamed = [
        replace(h, word=ids[h.word]) if h.kind == Kind.KVM_APIC_ACCEPT_IRQ else h
        for h in story.happenings
    ]
    assert_true(story, story.with_events(renamed, apic_ids=ids))


@pytest.mark.parametrize("name", ["emulated", "vmx", "exitless"])
def test_nothing_in_nothing_out(name: str) -> None:
    story = tell(name, 3, 1, targets=2)
    none = story.trace
    unsent = correlate(replace(none, sends=none.sends[:0]))
    assert unsent.tsc.shape == (0, len(Stage))
    unwatched = correlate(story.with_events([]))
    guest = list(GUEST_STAMPS)
    assert np.array_equal(unwatched.tsc[:, guest], story.tsc[:, guest])
    assert (np.delete(unwatched.tsc, guest, axis=1) == ABSENT).all()
    unheard = correlate(replace(none, receipts=tuple(r[:0] for r in none.receipts)))
    assert (unheard.stage(Stage.HANDLER) == ABSENT).all()
    assert correlate(replace(none, targets=())).tsc.shape == (0, len(Stage))
