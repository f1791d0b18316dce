# SPDX-License-Identifier: Apache-2.0
"""Which of two hooks is used if a kernel accepts one of them, at load or at attach only."""

import errno
import os
from typing import cast

import pytest

from ipitrace.base.errors import HostError
from ipitrace.tracer.bpf_links import ProgramRefusedError
from ipitrace.tracer.btf import BtfFunction
from ipitrace.tracer.events import EVENT_BY_NAME
from ipitrace.tracer.loading import Bpf, load_programs, try_attach
from ipitrace.tracer.program import KernelOffer, Probe, plan

NAME = "vmx_deliver_interrupt"
OFFER = KernelOffer(btf_functions={NAME: BtfFunction(7, "kvm_intel", 4)}, functions={NAME})
PLAN = plan([EVENT_BY_NAME[NAME]], OFFER)
(FENTRY,) = PLAN.probes


class Kernel:
    """Stands for a kernel that refuses hooks; no kernel refuses to attach on demand."""

    def __init__(self, *, unloadable: str = "", unattachable: str = "") -> None:
        self.unloadable, self.unattachable = unloadable.split(), unattachable.split()
        self.hooks: dict[str, str] = {}
        self.attached: list[str] = []

    def load(self, function: str, hook: str, btf: BtfFunction | None = None) -> None:
        assert (btf is not None) == (hook in {"fentry", "fexit"})
        if hook in self.unloadable:
            raise ProgramRefusedError(f"no {hook}")
        self.hooks[function] = hook

    def attach(self, function: str, target: str) -> None:
        assert target == NAME
        if self.hooks[function] in self.unattachable:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        self.attached.append(self.hooks[function])


def bpf(kernel: Kernel) -> Bpf:
    return cast("Bpf", kernel)


def load(kernel: Kernel) -> Probe:
    (accepted,), refused = load_programs(bpf(kernel), PLAN)
    assert refused == {}
    return accepted


def test_fentry_is_used_where_the_kernel_accepts_it() -> None:
    kernel = Kernel()
    assert load(kernel) == FENTRY
    assert try_attach(bpf(kernel), FENTRY) == (FENTRY, "")
    assert kernel.attached == ["fentry"]
    assert list(kernel.hooks.values()) == ["fentry"], "the second choice is loaded only if needed"


def test_a_program_that_is_not_loaded_is_replaced() -> None:
    kernel = Kernel(unloadable="fentry")
    probe = load(kernel)
    assert probe == FENTRY.second
    assert probe.hook == "kprobe"
    assert try_attach(bpf(kernel), probe) == (probe, "")


def test_a_program_that_is_not_attached_is_replaced() -> None:
    kernel = Kernel(unattachable="fentry")
    assert load(kernel) == FENTRY
    assert try_attach(bpf(kernel), FENTRY) == (FENTRY.second, "")
    assert kernel.attached == ["kprobe"]


def test_the_reasons_of_both_are_told() -> None:
    kernel = Kernel(unattachable="fentry kprobe")
    busy = os.strerror(errno.EBUSY)
    assert try_attach(bpf(kernel), load(kernel)) == (
        FENTRY,
        f"not attached: fentry: {busy}; kprobe: {busy}",
    )
    with pytest.raises(HostError) as raised:
        load_programs(bpf(Kernel(unloadable="fentry kprobe")), PLAN)
    assert raised.value.hint == "refused: fentry: no fentry; kprobe: no kprobe"
