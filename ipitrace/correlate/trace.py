# SPDX-License-Identifier: Apache-2.0
"""The input of the correlator: one storm's logs and host events, on one clock."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.pairing import eoi_tsc, pair_receipts, taken
from ipitrace.correlate.stamps import ABSENT
from ipitrace.words.scenarios import Route


@dataclass(frozen=True)
class StormTrace:
    """One traced storm; every stamp is guest TSC as int64.

    A TSC of 2^63 or more is a negative stamp. A storm must not cross 2^63, and must stay
    farther from it than the clock's error. Any other range is valid.

    Attributes:
        sends: records of abi.storm.SEND of this sender, ascending.
        receipts: each vCPU's records of abi.storm.RECEIPT, ascending.
        sender: the vCPU that sends.
        targets: the vCPUs that handle each IPI.
        vector: the interrupt vector of the IPIs.
        events: records of abi.events.HOST_EVENT, of the VM's vCPUs and in any order.
        event_tsc: their stamps; shape (len(events),).
        bound_cycles: the largest error of an event's stamp. Events of the same time have the
            same error: their order among themselves is exact.
        cpus: the host CPU of each vCPU if they are pinned, else None.
        complete: no event was lost.
        exits_fire: kvm_exit was seen at least once in this VM.
        suspect: intervals of TSC in which the guest's clock cannot be trusted.
        apic_ids: each vCPU's APIC id; None if it equals the vCPU's number.
        stages_only: only the events of the stages were traced. They do not prove a path.
    """

    sends: NDArray[np.void]
    receipts: Sequence[NDArray[np.void]]
    sender: int
    targets: Sequence[int]
    vector: int
    events: NDArray[np.void]
    event_tsc: NDArray[np.int64]
    bound_cycles: int
    cpus: Sequence[int] | None
    complete: bool
    exits_fire: bool
    suspect: Sequence[tuple[int, int]] = ()
    apic_ids: Sequence[int] | None = None
    stages_only: bool = False

    def of_route(self, route: Route) -> "StormTrace":
        """The part of one sender of a storm in which several send; with all events."""
        own = self.sends[self.sends["sender"] == route.sender]
        return replace(self, sends=own, sender=route.sender, targets=route.targets)

    def apic_id(self, vcpu: int) -> int:
        """The APIC id of a vCPU in accept events."""
        return vcpu if self.apic_ids is None else self.apic_ids[vcpu]


@dataclass(frozen=True)
class GuestSide:
    """The guest's own stamps, and the window of each IPI; arrays of shape (n,) or (n, targets).

    A window reaches from `low` to `until`, which is the next window's `low`. By the clock's
    error, a host event may seem to come before its send. The window begins no earlier than
    halfway between the acknowledgement before and the send.

    Attributes:
        seq: the send's number.
        send: before the send.
        sent: after the send.
        ack: its acknowledgement; ABSENT if it timed out.
        handler: the handler's entry on each target; ABSENT if there was none.
        eoi: after the handler's EOI on each target; ABSENT if there was none.
        low: begin of the window.
        until: end of the window.
        done: end of everything that the sending instruction itself does.
    """

    seq: NDArray[np.int64]
    send: NDArray[np.int64]
    sent: NDArray[np.int64]
    ack: NDArray[np.int64]
    handler: NDArray[np.int64]
    eoi: NDArray[np.int64]
    low: NDArray[np.int64]
    until: NDArray[np.int64]
    done: NDArray[np.int64]

    @classmethod
    def of(cls, trace: StormTrace) -> "GuestSide":
        """The guest's stamps of a storm."""
        bound = trace.bound_cycles
        send = trace.sends["send_tsc"].astype(np.int64)
        sent = trace.sends["sent_tsc"].astype(np.int64)
        acked = trace.sends["ack_tsc"] != 0
        ack = np.where(acked, trace.sends["ack_tsc"].astype(np.int64), ABSENT)
        handler, eoi = (np.full((len(send), len(trace.targets)), ABSENT) for _ in range(2))
        for column, target in enumerate(trace.targets):
            receipts = trace.receipts[target]
            handled = receipts["handler_tsc"].astype(np.int64)
            index = pair_receipts(send, handled).receipt_of_send
            handler[:, column] = taken(handled, index)
            eoi[:, column] = taken(eoi_tsc(receipts), index)
        over = np.maximum(sent, ack)
        slack = np.full(len(send), bound, np.int64)
        slack[1:] = np.clip((send[1:] - over[:-1]) // 2, 0, bound)
        low = send - slack
        # the last window ends after the last stamp of its IPI
        stamps = [*over[-1:], *handler[-1:].reshape(-1), *eoi[-1:].reshape(-1)]
        end = np.array([max(stamps) + bound + 1] if stamps else [], np.int64)
        until = np.concatenate([low[1:], end])
        return cls(
            seq=trace.sends["seq"].astype(np.int64),
            send=send,
            sent=sent,
            ack=ack,
            handler=handler,
            eoi=eoi,
            low=low,
            until=until,
            done=np.minimum(sent + bound + 1, until),
        )

    def part(self, rows: slice) -> "GuestSide":
        """Some of the sends."""
        return GuestSide(**{name: column[rows] for name, column in vars(self).items()})
