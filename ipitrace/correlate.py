# SPDX-License-Identifier: Apache-2.0
"""Which handler entry belongs to which send."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Deliveries:
    """The handler entries of one vCPU, paired with their sends.

    Attributes:
        deliver_cycles: TSC from before the send to the handler's first instruction.
        unpaired: handler entries that belong to no send.
        before_send: pairs in which the handler seems to run before its send: with one
            TSC for all vCPUs there must be none.
    """

    deliver_cycles: NDArray[np.int64]
    unpaired: int
    before_send: int


def pair_deliveries(sends: NDArray[np.void], receipts: NDArray[np.void]) -> Deliveries:
    """Pair one vCPU's receipts with the sends that caused them.

    The sender waits for each acknowledgement before it sends again, so in a
    storm without a loss the n-th entry belongs to the n-th send. Where the two
    numbers differ (an IPI was lost, or two merged), each entry belongs to the
    last send before it.

    Args:
        sends: records of storm.abi.SEND in the order sent.
        receipts: records of storm.abi.RECEIPT in the order handled.
    """
    sent_at = sends["send_tsc"].astype(np.int64)
    handled_at = receipts["handler_tsc"].astype(np.int64)
    if len(sent_at) == len(handled_at):
        cycles = handled_at - sent_at
        return Deliveries(cycles, 0, int(np.count_nonzero(cycles <= 0)))
    cause = np.searchsorted(sent_at, handled_at, side="left") - 1
    known = cause >= 0
    cycles = handled_at[known] - sent_at[cause[known]]
    return Deliveries(cycles, int(np.count_nonzero(~known)), 0)
