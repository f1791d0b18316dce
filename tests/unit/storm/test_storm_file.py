# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Truth, receipts, sends, truths

from ipitrace.abi.storm import ABI_VERSION, FILE, FILE_MAGIC, RECEIPT, StormState
from ipitrace.base.errors import HostError, IpitraceError, MeasurementError
from ipitrace.correlate.pairing import eoi_tsc
from ipitrace.correlate.stamps import ABSENT
from ipitrace.storm.driver import StormRequest
from ipitrace.storm.linux.storm_file import Asked, StormFile
from ipitrace.storm.plausible import check_plausible
from ipitrace.summary.storms import cycles_of
from ipitrace.words.scenarios import Pattern, Route, select_scenarios

NOBODY = np.zeros(0, RECEIPT)


def storm_file(
    truth: Truth, *, state: int = StormState.DONE, abi: int = ABI_VERSION, more_header: int = 0
) -> bytes:
    """What a guest with three CPUs hands back of a unicast storm to CPU 1."""
    header = np.zeros(1, FILE)
    header["magic"], header["abi_version"] = FILE_MAGIC, abi
    header["header_bytes"] = FILE.itemsize + more_header
    header["n_vcpus"], header["vector"], header["tsc_khz"] = 3, 0xEC, 2_000_000
    header["n_sends"] = len(truth.sends)
    header["status"]["state"], header["status"]["sent"] = state, len(truth.sends)
    header["status"]["as_asked"] = len(truth.receipts)
    counts = np.array([0, len(truth.receipts), 0], "<u8")
    parts = (header, bytes(more_header), truth.sends, counts, truth.receipts)
    return b"".join(p if isinstance(p, bytes) else p.tobytes() for p in parts)


def asked(truth: Truth, n_vcpus: int = 3) -> Asked:
    return Asked(len(truth.sends), [1], n_vcpus)


@given(truths(min_size=2), st.data())
def test_a_file_gives_back_the_measured_part(truth: Truth, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, len(truth.sends) - 1))
    storm = StormFile.parse(storm_file(truth), asked(truth, 5)).storm(warmup, 5)
    cycles = cycles_of(storm, [Route(0, (1,))])
    assert cycles.send.tolist() == list(truth.send[warmup:])
    assert cycles.deliver.tolist() == list(truth.deliver[warmup:])
    assert cycles.round_trip.tolist() == list(truth.round_trip[warmup:])
    assert cycles.unpaired == 0
    assert storm.handled == (0, len(truth.sends) - warmup, 0, 0, 0)
    assert (storm.vector, storm.tsc_khz, storm.as_asked) == (0xEC, 2_000_000, 1.0)
    assert (storm.start, storm.counted) == (None, None)


@given(truths())
def test_a_longer_header_of_the_same_version_is_passed_over(truth: Truth) -> None:
    plain = StormFile.parse(storm_file(truth), asked(truth)).storm(0, 3)
    longer = StormFile.parse(storm_file(truth, more_header=40), asked(truth)).storm(0, 3)
    assert longer.sends.tobytes() == plain.sends.tobytes()


@given(truths(), st.data())
def test_a_file_that_is_cut_off_is_refused_wherever(truth: Truth, data: st.DataObject) -> None:
    whole = storm_file(truth)
    kept = data.draw(st.integers(len(FILE_MAGIC) + 4, len(whole) - 1))
    with pytest.raises(HostError):
        StormFile.parse(whole[:kept], asked(truth))


@pytest.mark.parametrize("data", [b"", b"Welcome to guest1\n", b"IPISTOR"])
def test_something_else_is_refused(data: bytes) -> None:
    with pytest.raises(HostError, match="no records"):
        StormFile.parse(data, Asked(1, [1], 3))


@given(truths())
def test_another_version_is_refused_with_what_to_do(truth: Truth) -> None:
    with pytest.raises(HostError, match=f"version {ABI_VERSION + 1}") as raised:
        StormFile.parse(storm_file(truth, abi=ABI_VERSION + 1), asked(truth))
    assert "guest install" in raised.value.hint


@given(truths())
def test_a_storm_that_gave_up_is_no_measurement(truth: Truth) -> None:
    with pytest.raises(MeasurementError, match="gave up"):
        StormFile.parse(storm_file(truth, state=StormState.GAVE_UP), asked(truth)).storm(0, 3)


def test_an_unknown_end_of_interrupt_is_absent() -> None:
    receipts = np.zeros(2, RECEIPT)
    receipts["handler_tsc"] = [10, 20]
    receipts["eoi_tsc"] = [0, 25]
    assert eoi_tsc(receipts).tolist() == [ABSENT, 25]


def test_what_was_not_asked_for_is_refused() -> None:
    truth = Truth((1,), (1,), (2,), sends([(10, 11, 20)]), receipts([15]))
    whole = storm_file(truth)
    assert len(StormFile.parse(whole, Asked(1, [1], 3)).sends) == 1
    for less in (Asked(0, [1], 3), Asked(1, [1], 2), Asked(1, [2], 3)):
        with pytest.raises(HostError, match="do not match the request"):
            StormFile.parse(whole, less)
    with pytest.raises(HostError, match="followed by 3 unknown bytes"):
        StormFile.parse(whole + b"\0\0\0", Asked(1, [1], 3))


def test_the_senders_of_a_ring_have_their_own_warm_up() -> None:
    """Two CPUs; the second begins to measure later, and its target with it."""
    logs = [
        sends([(at, at + 1, at + 9) for at in begun]) for begun in ((10, 30, 50), (15, 100, 120))
    ]
    logs[1]["sender"] = 1
    handled = {1: receipts([12, 32, 52]), 0: receipts([17, 102, 122])}
    header = np.zeros(1, FILE)
    header["magic"], header["abi_version"], header["header_bytes"] = FILE_MAGIC, ABI_VERSION, 192
    header["n_vcpus"], header["vector"], header["n_sends"] = 2, 0xEC, 6
    header["status"]["state"] = StormState.DONE
    counts = np.array([3, 3], "<u8")
    parts = (header, *logs, counts, handled[0], handled[1])
    data = b"".join(part.tobytes() for part in parts)
    storm = StormFile.parse(data, Asked(3, (0, 1), 2, Pattern.RING)).storm(1, 2)
    assert storm.sends["send_tsc"].tolist() == [30, 50, 100, 120]
    assert [r["handler_tsc"].tolist() for r in storm.receipts] == [[102, 122], [32, 52]]
    assert storm.handled == (2, 2)


CHANGES = st.lists(
    st.tuples(st.integers(0, 1 << 30), st.binary(min_size=1, max_size=8)), max_size=6
)


@given(truths(min_size=2), CHANGES)
def test_whatever_a_file_says_it_is_told_or_taken(
    truth: Truth, changes: list[tuple[int, bytes]]
) -> None:
    """Any bytes behind the magic; no other error than ours, and no warning."""
    data = bytearray(storm_file(truth))
    for where, new in changes:
        at = len(FILE_MAGIC) + where % (len(data) - len(FILE_MAGIC))
        data[at : at + len(new)] = new
    (scenario,) = select_scenarios(["unicast-running"])
    n = len(truth.sends)
    request = StormRequest(scenario, 3, n - 1, 1, 0)
    try:
        storm = StormFile.parse(bytes(data), Asked(n, [1], 3)).storm(1, 3)
        check_plausible(storm, request, [1], 1e9)
    except IpitraceError:
        return
    cycles = cycles_of(storm, [Route(0, (1,))])
    assert (cycles.send >= 0).all()
    assert len(cycles.deliver) <= n - 1
