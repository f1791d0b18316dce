# SPDX-License-Identifier: Apache-2.0
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from made_up import SEEDS, tell

from ipitrace.correlate.pairing import NONE, pair_receipts
from ipitrace.words.stages import Stage


@given(SEEDS, st.integers(0, 4), st.integers(1, 3))
def test_one_lost_and_a_later_one_handled_twice_shift_none_between(
    seed: int, lost: int, later: int
) -> None:
    story = tell("vmx", 12, seed)
    send, handler = story.tsc[:, Stage.SEND], story.tsc[:, Stage.HANDLER]
    twice = lost + later
    handled = np.sort(np.append(np.delete(handler, lost), handler[twice] + 1))
    paired = pair_receipts(send, handled)
    assert paired.receipt_of_send[lost] == NONE
    assert paired.unpaired == 1
    kept = np.delete(np.arange(12), lost)
    assert handled[paired.receipt_of_send[kept]].tolist() == handler[kept].tolist()


def test_clocks_that_disagree_throughout_are_left_to_show_it() -> None:
    send = np.arange(0, 1000, 100)
    ahead = send + 130
    assert pair_receipts(send, ahead).receipt_of_send.tolist() == list(range(10))
