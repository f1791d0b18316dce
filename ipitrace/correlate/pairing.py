# SPDX-License-Identifier: Apache-2.0
"""Which handler entry belongs to which send."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.stamps import ABSENT

NONE = -1


@dataclass(frozen=True)
class Pairing:
    """One vCPU's handler entries, paired with their sends.

    Attributes:
        receipt_of_send: for each send the index of its receipt, NONE where there is none.
        unpaired: handler entries that belong to no send.
    """

    receipt_of_send: NDArray[np.int64]
    unpaired: int


def pair_receipts(send_tsc: NDArray[np.int64], handler_tsc: NDArray[np.int64]) -> Pairing:
    """Pair one vCPU's handler entries with the sends that caused them.

    The sender waits for each acknowledgement before it sends again, so in a storm
    without a loss the n-th entry belongs to the n-th send, and their stamps may then
    contradict each other: that shows a fault of the clocks. Where the two numbers
    differ (an IPI was lost, or two merged), the first entry between a send and the
    next belongs to it. So it does where the numbers agree but some entries, though not
    most, come after the next send: there an IPI was lost, and another handled twice.

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
    """How many of the n-th entries come after the n-th send's successor."""
    return int(np.count_nonzero(handler_tsc[:-1] >= send_tsc[1:]))


def taken(values: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.int64]:
    """`values[index]`, and ABSENT where the index is NONE."""
    if len(values) == 0:
        return np.full(len(index), ABSENT, np.int64)
    return np.where(index == NONE, ABSENT, values[index])


def eoi_tsc(receipts: NDArray[np.void]) -> NDArray[np.int64]:
    """When each handler ended its interrupt, ABSENT where the guest does not know."""
    ended = receipts["eoi_tsc"].astype(np.int64)
    return np.where(ended == 0, ABSENT, ended)
