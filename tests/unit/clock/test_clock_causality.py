# SPDX-License-Identifier: Apache-2.0
"""Effects before their causes are counted by kind, and only beyond the bound."""

import numpy as np
from numpy.typing import NDArray

from ipitrace.clock import count_violations


def stamps(*values: int) -> NDArray[np.uint64]:
    return np.array(values, np.uint64)


def test_each_kind_has_its_count() -> None:
    pairs = {
        "accept before send": (stamps(100, 200, 300), stamps(101, 199, 250)),
        "handler before accept": (stamps(5), stamps(5)),
        "nothing": (stamps(), stamps()),
    }
    assert count_violations(pairs) == {
        "accept before send": 2,
        "handler before accept": 0,
        "nothing": 0,
    }


def test_a_stamp_just_at_its_bound_is_no_violation() -> None:
    pair = {"x": (stamps(100, 100, 100), stamps(91, 90, 89))}
    assert count_violations(pair, 10) == {"x": 1}
    assert count_violations(pair, 9) == {"x": 2}
    assert count_violations(pair, np.array([0.0, 0.0, 11.0])) == {"x": 2}


def test_signed_and_unsigned_and_wrapping_stamps() -> None:
    before_wrap, after_wrap = stamps(2**64 - 10), stamps(5)
    assert count_violations({"x": (before_wrap, after_wrap)}) == {"x": 0}
    assert count_violations({"x": (after_wrap, before_wrap)}) == {"x": 1}
    assert count_violations({"x": (np.array([-10], np.int64), after_wrap)}) == {"x": 0}
