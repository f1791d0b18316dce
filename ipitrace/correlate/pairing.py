# SPDX-License-Identifier: Apache-2.0
"""Pairs handler entries with sends."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.stamps import ABSENT

NONE = -1


@dataclass(frozen=True)
class Pairing:
    """One vCPU's handler entries, paired with their sends.

    Attributes:
        receipt_of_send: for each send the index of its receipt; NONE if there is none.
        unpaired: handler entries without a send.
    """

    receipt_of_send: NDArray[np.int64]
    unpaired: int


def pair_receipts(send_tsc: NDArray[np.int64], handler_tsc: NDArray[np.int64]) -> Pairing:
    """Pair one vCPU's handler entries with the sends that caused them.

    The sender waits for each acknowledgement before it sends again. In a storm without a
    loss, the n-th entry therefore belongs to the n-th send. If their stamps contradict each
    other, the clocks are faulty. If the two numbers differ (an IPI was lost, or two were
    merged), the first entry between a send and the next one belongs to that send. The same
    rule applies if the numbers are equal but some entries, at most half, come after the next
    send: an IPI was then lost, and another one was handled twice.

    Args:
        send_tsc: ascending.
        handler_tsc: ascending.
    """
    n = len(send_tsc)
    if len(handler_tsc) == n and not 0 < _late(send_tsc, handler_tsc) <= n // 2:
        return Pairing(np.arange(n, dtype=np.int64), 0)
    first = np.searchsorted(handler_tsc, send_tsc, side="right")
    until = np.append(first[1:], len(handler_tsc))
    receipt = np.where(first < until, first, NONE).astype(np.int64)
    return Pairing(receipt, len(handler_tsc) - int(np.count_nonzero(receipt != NONE)))


def _late(send_tsc: NDArray[np.int64], handler_tsc: NDArray[np.int64]) -> int:
    """The number of entries n that come after send n + 1."""
    return int(np.count_nonzero(handler_tsc[:-1] >= send_tsc[1:]))


def taken(values: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.int64]:
    """`values[index]`, or ABSENT if the index is NONE."""
    if len(values) == 0:
        return np.full(len(index), ABSENT, np.int64)
    return np.where(index == NONE, ABSENT, values[index])


def eoi_tsc(receipts: NDArray[np.void]) -> NDArray[np.int64]:
    """The time at which each handler ended its interrupt; ABSENT if the guest did not record it."""
    ended = receipts["eoi_tsc"].astype(np.int64)
    return np.where(ended == 0, ABSENT, ended)
