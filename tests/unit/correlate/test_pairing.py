# SPDX-License-Identifier: Apache-2.0
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import Truth, truths

from ipitrace.correlate.pairing import NONE, Pairing, pair_receipts, taken
from ipitrace.correlate.stamps import ABSENT


def pair(sent: list[int], handled: list[int]) -> Pairing:
    return pair_receipts(np.array(sent, np.int64), np.array(handled, np.int64))


def stamps(truth: Truth) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return truth.sends["send_tsc"].astype(np.int64), truth.receipts["handler_tsc"].astype(np.int64)


@given(truths())
def test_without_a_loss_every_entry_has_its_send(truth: Truth) -> None:
    sent, handled = stamps(truth)
    paired = pair_receipts(sent, handled)
    assert (taken(handled, paired.receipt_of_send) - sent).tolist() == list(truth.deliver)
    assert paired.unpaired == 0


@given(truths(min_size=2), st.data())
def test_a_lost_delivery_does_not_shift_the_others(truth: Truth, data: st.DataObject) -> None:
    sent, handled = stamps(truth)
    lost = data.draw(st.sets(st.integers(0, len(sent) - 1), min_size=1))
    kept = handled[[i for i in range(len(sent)) if i not in lost]]
    paired = pair_receipts(sent, kept)
    handler = taken(kept, paired.receipt_of_send)
    expected = [ABSENT if i in lost else handled[i] for i in range(len(sent))]
    assert handler.tolist() == expected
    assert paired.unpaired == 0


def test_an_entry_before_the_first_send_belongs_to_none() -> None:
    paired = pair([100], [90, 130])
    assert paired.receipt_of_send.tolist() == [1]
    assert paired.unpaired == 1


def test_only_the_first_of_two_entries_is_the_sends() -> None:
    paired = pair([100, 200], [130, 140, 230])
    assert paired.receipt_of_send.tolist() == [0, 2]
    assert paired.unpaired == 1


def test_a_merged_delivery_is_the_later_sends() -> None:
    assert pair([100, 200], [230]).receipt_of_send.tolist() == [NONE, 0]


def test_as_many_entries_as_sends_are_paired_in_order_even_against_the_clock() -> None:
    assert pair([100, 200, 300], [130, 190, 300]).receipt_of_send.tolist() == [0, 1, 2]


def test_nothing_sent_and_nothing_handled() -> None:
    assert pair([], []).receipt_of_send.size == 0
    assert pair([], [5]).unpaired == 1
    nothing = pair([5], [])
    assert nothing.receipt_of_send.tolist() == [NONE]
    assert taken(np.zeros(0, np.int64), nothing.receipt_of_send).tolist() == [ABSENT]
