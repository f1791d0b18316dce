# SPDX-License-Identifier: Apache-2.0
"""Whether a guest of this host can send IPIs by KVM_HC_SEND_IPI."""

import contextlib
from functools import cache
from typing import Final

from ipitrace.abi.storm import StormPattern, StormSendMethod, StormTargetState
from ipitrace.base.errors import HostError, MeasurementError
from ipitrace.storm.driver import Hooks
from ipitrace.storm.micro.image import LogSizes, load_payload
from ipitrace.storm.micro.kvm import Vm
from ipitrace.storm.micro.machine import Machine

_TIMEOUT_CYCLES: Final = 1_000_000_000
_SILENCE_S: Final = 1.0


@cache
def why_unsupported() -> str | None:
    """Why no guest of this host can send so; None if one can, or if no VM can be made.

    A KVM that offers the hypercall may still not execute the instruction, so one IPI is sent in a
    VM of its own.
    """
    try:
        with contextlib.closing(Vm()) as vm:
            if not vm.offers_pv_ipis:
                return "this host's KVM does not offer KVM_HC_SEND_IPI (KVM_FEATURE_PV_SEND_IPI)"
        _send_one()
    except MeasurementError:
        return "this host's KVM offers KVM_HC_SEND_IPI, but one IPI sent by it did not arrive"
    except HostError:  # a run will fail for the same reason, and say so
        return None
    return None


def _send_one() -> None:
    method = StormSendMethod.PV_HYPERCALL
    with Machine(load_payload(), 2, LogSizes(1, 1), method) as machine:
        machine.memory.write_params(
            pattern=StormPattern.UNICAST,
            target_state=StormTargetState.RUNNING_USER,
            send_method=method,
            target=1,
            max_incomplete=0,
            warmup=0,
            count=1,
            timeout_cycles=_TIMEOUT_CYCLES,
        )
        machine.run(None, Hooks(), warmup=0, silence_s=_SILENCE_S)
