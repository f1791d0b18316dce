# SPDX-License-Identifier: Apache-2.0
"""What no guest can have recorded: each rule broken alone, in a storm that was real."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded import recorded_storms
from strategies import receipts, sends
from strategies import storm as storm_of

from ipitrace.abi.storm import RECEIPT, SEND
from ipitrace.base.errors import ExitCode, MeasurementError
from ipitrace.storm.driver import Storm, StormRequest
from ipitrace.storm.plausible import check_plausible
from ipitrace.words.scenarios import SCENARIOS

RECORDINGS = Path(__file__).parents[2] / "data" / "recordings"
TARGET = 1
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


@dataclass(frozen=True)
class Real:
    """A storm as it was recorded, and what it was asked for."""

    storm: Storm
    request: StormRequest
    targets: tuple[int, ...]
    elapsed_s: float

    def check(self) -> None:
        check_plausible(self.storm, self.request, self.targets, self.elapsed_s)


def reals(recording: str) -> Iterator[Real]:
    for storm, request, targets, elapsed_s in recorded_storms(RECORDINGS / recording):
        yield Real(storm, request, targets, elapsed_s)


@pytest.mark.parametrize(
    "recording", ["amd-tcg", "intel-bochs", "micro-pvm", "passthrough-off", "passthrough-on"]
)
def test_every_storm_that_was_recorded_can_be(recording: str) -> None:
    n = 0
    for real in reals(recording):
        real.check()
        n += 1
    assert n > 0


@pytest.fixture(scope="module")
def real() -> Real:
    """A unicast without a loss."""
    for one in reals("micro-pvm"):
        if one.request.scenario.name == "unicast-running" and one.storm.incomplete == 0:
            return one
    raise AssertionError


def with_send(storm: Storm, i: int, **fields: int) -> Storm:
    sends = storm.sends.copy()
    for name, value in fields.items():
        sends[name][i] = value
    return replace(storm, sends=sends)


def with_receipts(storm: Storm, change: Callable[[Any], Any]) -> Storm:
    receipts = list(storm.receipts)
    receipts[TARGET] = change(receipts[TARGET].copy())
    handled = tuple(map(len, receipts))
    return replace(storm, receipts=tuple(receipts), handled=handled)


def with_receipt(storm: Storm, i: int, **fields: int) -> Storm:
    def change(receipts: Any) -> Any:
        for name, value in fields.items():
            receipts[name][i] = value
        return receipts

    return with_receipts(storm, change)


def stamp(storm: Storm, name: str, i: int) -> int:
    return int(storm.sends[name][i])


def handled_twice(storm: Storm) -> Storm:
    """One more handler entry than sends."""

    def change(receipts: Any) -> Any:
        more = np.append(receipts, receipts[-1:])
        more["seq"] = np.arange(len(more))
        more["handler_tsc"][-1] += 1_000
        more["eoi_tsc"][-1] += 1_000
        return more

    return with_receipts(storm, change)


def never_handled(storm: Storm) -> Storm:
    """As if the first had been lost, but acknowledged."""

    def change(receipts: Any) -> Any:
        return receipts[1:]

    return with_receipts(storm, change)


def late(storm: Storm) -> Storm:
    """D above R: the handler runs after the acknowledgement, and before the next send."""
    end = stamp(storm, "ack_tsc", 5)
    return with_receipt(storm, 5, handler_tsc=end + 100, eoi_tsc=end + 200)


def numbered(storm: Storm, first: int) -> Storm:
    sends = storm.sends.copy()
    sends["seq"] = np.arange(first, first + len(sends))
    return replace(storm, sends=sends)


def unnumbered(storm: Storm) -> Storm:
    sends = storm.sends.copy()
    sends["seq"] = 0
    return replace(storm, sends=sends)


def unanswered(storm: Storm) -> Storm:
    """All timed out, though the guest counts none."""
    sends = storm.sends.copy()
    sends["ack_tsc"] = 0
    return replace(storm, sends=sends)


def stretched(storm: Storm, factor: int) -> Storm:
    """Every stamp `factor` times as far from the first."""
    zero = stamp(storm, "send_tsc", 0)

    def change(records: Any, names: tuple[str, ...]) -> Any:
        records = records.copy()
        for name in names:
            there = records[name] != 0
            records[name][there] = zero + (records[name][there] - zero) * factor
        return records

    return replace(
        storm,
        sends=change(storm.sends, ("send_tsc", "sent_tsc", "ack_tsc")),
        receipts=tuple(change(r, ("handler_tsc", "eoi_tsc")) for r in storm.receipts),
    )


IMPOSSIBLE: dict[str, tuple[Callable[[Storm], Storm], str]] = {
    "too few sends": (lambda s: replace(s, sends=s.sends[:6]), "6 sends were recorded, but"),
    "no sends": (lambda s: replace(s, sends=np.zeros(0, SEND)), "0 sends were recorded"),
    "one send too many": (
        lambda s: replace(s, sends=np.append(s.sends, s.sends[-1:])),
        "sends were recorded",
    ),
    "all numbers 0": (unnumbered, "has number 0 instead of 100"),
    "numbers from 0": (lambda s: numbered(s, 0), "has number 0 instead of 100"),
    "a number twice": (lambda s: with_send(s, 3, seq=102), "has number 102 instead of 103"),
    "another target": (lambda s: with_send(s, 3, target=7), "send 103 went to vCPU 7"),
    "a broadcast": (lambda s: with_send(s, 3, target=0xFFFF), "went to vCPU 65535"),
    "another sender": (lambda s: with_send(s, 3, sender=1), "send 103 came from vCPU 1"),
    "no stamp": (lambda s: with_send(s, 3, send_tsc=0), "a send_tsc is 0"),
    "a stamp that overflows": (lambda s: with_send(s, 3, ack_tsc=1 << 63), "a ack_tsc is 9223"),
    "handled at 0": (lambda s: with_receipt(s, 3, handler_tsc=0), "a handler_tsc is 0"),
    "an EOI that overflows": (
        lambda s: with_receipt(s, 3, eoi_tsc=(1 << 64) - 1),
        "a eoi_tsc is 18446744073709551615",
    ),
    "negative S": (
        lambda s: with_send(s, 3, sent_tsc=stamp(s, "send_tsc", 3) - 5),
        "send 103 was over 5 cycles before it began",
    ),
    "acknowledged while it was sent": (
        lambda s: with_send(s, 3, ack_tsc=stamp(s, "sent_tsc", 3) - 5),
        "send 103 was acknowledged 5 cycles before it was over",
    ),
    "sends that overlap": (
        lambda s: with_send(s, 3, ack_tsc=stamp(s, "send_tsc", 4) + 9),
        "send 104 began -9 cycles after",
    ),
    "faster than the pace": (
        lambda s: with_send(s, 3, ack_tsc=stamp(s, "send_tsc", 4) - 40_000),
        "send 104 began 40000 cycles after the end of the previous one, but the pace is 60000",
    ),
    "not acknowledged, not counted": (unanswered, "the guest counts 0"),
    "counted, but acknowledged": (lambda s: replace(s, incomplete=101), "the guest counts 101"),
    "more than all as asked": (lambda s: replace(s, as_asked=1.5), "state is 1.5"),
    "a vCPU too few": (
        lambda s: replace(s, receipts=s.receipts[:1], handled=s.handled[:1]),
        "1 vCPUs have records, but the guest has 2",
    ),
    "the sender handled": (
        lambda s: replace(s, receipts=(s.receipts[1], s.receipts[1]), handled=s.handled[1:] * 2),
        "vCPU 0 handled",
    ),
    "the sender counted": (lambda s: replace(s, handled=(3, s.handled[1])), "vCPU 0 handled 3"),
    "none handled": (
        lambda s: with_receipts(s, lambda r: r[:0]),
        "1 IPIs must have been handled, but vCPU 1 had begun to handle 0",
    ),
    "none counted": (lambda s: replace(s, handled=(0, 0)), "but counted 0"),
    "six times as many counted": (
        lambda s: replace(s, handled=(0, 6 * s.handled[1])),
        "handler entries but counted",
    ),
    "negative count": (lambda s: replace(s, handled=(0, -100)), "but counted -100"),
    "handled more than sent": (handled_twice, "were sent"),
    "one handler lacks": (never_handled, "vCPU 1 had begun to handle"),
    "D above R": (late, "when send 105 was acknowledged, 6 IPIs must have been handled"),
    "handlers numbered alike": (lambda s: with_receipt(s, 3, seq=2), "handler entry 2 follows 2"),
    "a handler before the last": (
        lambda s: with_receipt(s, 3, handler_tsc=int(s.receipts[1]["handler_tsc"][2])),
        "a handler began 0 cycles before the last one",
    ),
    "an EOI before its handler": (
        lambda s: with_receipt(s, 3, eoi_tsc=int(s.receipts[1]["handler_tsc"][3]) - 4),
        "EOI came 4 cycles before it began",
    ),
    "an EOI in the next handler": (
        lambda s: with_receipt(s, 3, eoi_tsc=int(s.receipts[1]["handler_tsc"][4]) + 4),
        "EOI came 4 cycles into the next",
    ),
    "longer than it took": (
        lambda s: stretched(s, 100_000),
        "s of the guest's TSC, but the storm took",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_be_is_no_measurement(real: Real, name: str) -> None:
    broken, reason = IMPOSSIBLE[name]
    real.check()
    with pytest.raises(MeasurementError) as raised:
        replace(real, storm=broken(real.storm)).check()
    assert reason in raised.value.message, raised.value.message
    assert raised.value.exit_code == ExitCode.UNTRUSTWORTHY


def lost(storm: Storm, i: int) -> Storm:
    """Send i timed out and was never handled."""
    fewer = with_receipts(with_send(storm, i, ack_tsc=0), lambda r: np.delete(r, i))
    return replace(with_receipts(fewer, renumbered), incomplete=storm.incomplete + 1)


def renumbered(receipts: Any) -> Any:
    receipts["seq"] = np.arange(len(receipts))
    return receipts


def in_its_handler(storm: Storm) -> Storm:
    """The last timed out, and is in its handler when the storm ends."""
    waiting = replace(with_send(storm, -1, ack_tsc=0), incomplete=1)
    return replace(waiting, handled=(0, waiting.handled[1] - 1))


def handled_late(storm: Storm) -> Storm:
    """A timed-out IPI of the warm-up is handled in the measured part, and taken for the first's."""
    n = len(storm.receipts[TARGET])

    def change(receipts: Any) -> Any:
        first = receipts[:1].copy()
        first["handler_tsc"] += 1
        first["eoi_tsc"] = first["handler_tsc"] + 1
        receipts["handler_tsc"][0] += 10
        return renumbered(np.concatenate([first, receipts]))

    more = replace(with_receipts(storm, change), incomplete=1)
    assert more.handled[TARGET] == n + 1
    return more


POSSIBLE: dict[str, Callable[[Storm], Storm]] = {
    "one lost": lambda s: lost(s, 7),
    "three lost": lambda s: lost(lost(lost(s, 7), 20), 21),
    "the last lost": lambda s: lost(s, -1),
    "in its handler at the end": in_its_handler,
    "one of the warm-up handled late": handled_late,
    "one of the warm-up lost": lambda s: replace(s, incomplete=1),
    "a target's TSC behind": lambda s: with_receipt(s, 7, handler_tsc=stamp(s, "send_tsc", 7) - 10),
    "EOIs that nobody knows": lambda s: with_receipts(s, without_eoi),
    "a guest that does not know its TSC's rate": lambda s: replace(s, tsc_khz=None),
}


def without_eoi(receipts: Any) -> Any:
    receipts["eoi_tsc"] = 0
    return receipts


@pytest.mark.parametrize("name", POSSIBLE)
def test_what_can_be_is_left_alone(real: Real, name: str) -> None:
    replace(real, storm=POSSIBLE[name](real.storm)).check()


def test_an_empty_log_of_a_vcpu_that_is_no_target_is_sound(real: Real) -> None:
    storm = real.storm
    three = replace(
        storm, receipts=(*storm.receipts, np.zeros(0, RECEIPT)), handled=(*storm.handled, 0)
    )
    replace(real, storm=three, request=replace(real.request, n_vcpus=3)).check()


def ring() -> tuple[Storm, StormRequest]:
    """Two vCPUs that send to each other, both at once."""
    logs = [sends([(at, at + 1, at + 9) for at in begun]) for begun in ((10, 30), (15, 100))]
    logs[1]["sender"], logs[1]["target"] = 1, 0
    one = storm_of(np.concatenate(logs), [receipts([17, 102]), receipts([12, 32])])
    return one, StormRequest(BY_NAME["ring"], 2, 2, 0, 0)


def test_each_sender_of_a_ring_is_checked() -> None:
    storm, request = ring()
    check_plausible(storm, request, (0, 1), 1e9)
    for field, value, reason in (
        ("sender", 0, "vCPU 0 sent 3 IPIs, but 2 were requested"),
        ("sender", 2, "came from vCPU 2"),
        ("target", 1, "went to vCPU 1 instead of vCPU 0"),
        ("seq", 5, "a send has number 5 instead of 1"),
        ("send_tsc", 16, "began -8 cycles after"),
        ("ack_tsc", 101, "when send 1 was acknowledged, 2 IPIs must have been"),
    ):
        with pytest.raises(MeasurementError, match=reason):
            check_plausible(with_send(storm, 3, **{field: value}), request, (0, 1), 1e9)
    with pytest.raises(MeasurementError, match="4 sends were recorded, but 8 were requested"):
        check_plausible(storm, replace(request, count=4), (0, 1), 1e9)
