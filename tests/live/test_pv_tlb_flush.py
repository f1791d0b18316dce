# SPDX-License-Identifier: Apache-2.0
"""TLB flushes in place of IPIs are counted: those that were needed, and no others."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pv_tlb_vm
import pytest
from checks import assert_sound_interval
from commands import ENVIRONMENT, IPITRACE

from ipitrace.tracer.session import Tracer
from ipitrace.words.events import Kind

pytestmark = pytest.mark.live

N = 25


def test_run_counts_the_flushes_that_were_needed() -> None:
    vm = pv_tlb_vm.PvTlbVm()
    with Tracer.load(pid=os.getpid(), n_vcpus=1, only=["kvm_pv_tlb_flush"]) as tracer:
        if "kvm_pv_tlb_flush" in tracer.left_out:
            pytest.skip(tracer.left_out["kvm_pv_tlb_flush"])
        tracer.set_vcpu_threads([threading.get_native_id()])
        tracer.attach()
        for _ in range(N):
            vm.run(flush=True)
            vm.run(flush=False)
        tracer.detach()
        seen = tracer.seen()
        assert seen[Kind.KVM_PV_TLB_FLUSH].tolist() == [N]
        assert np.count_nonzero(seen) == 1
        tracer.drain()
        assert len(tracer.take()) == 0


def test_watch_shows_them() -> None:
    vm = subprocess.Popen(
        [sys.executable, str(Path(pv_tlb_vm.__file__))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert vm.stdin is not None
    assert vm.stdout is not None
    try:
        assert vm.stdout.readline() == "ready\n"
        words = ("watch", "--vm", f"pid:{vm.pid}", "--interval", "0.5")
        watch = subprocess.Popen(
            [*IPITRACE, *words, "--json"], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        assert watch.stdout is not None
        (first,) = json.loads(watch.stdout.readline())["vms"]
        if first["pv_tlb_flushes"] is None:
            pytest.skip("the kernel has no kvm_pv_tlb_flush")
        assert first["pv_tlb_flushes"] == {"delta": 0, "total": 0}
        assert first["unwatched"] == []
        print(N, file=vm.stdin, flush=True)
        assert vm.stdout.readline() == "done\n"
        watch.stdout.readline()  # this interval may have ended before
        last = json.loads(watch.stdout.readline())
        watch.terminate()
        watch.communicate(timeout=60)
    finally:
        vm.communicate()
    assert_sound_interval(last)
    (found,) = last["vms"]
    assert found["pv_tlb_flushes"]["total"] == N
    assert found["sends"]["total"] == found["ipis"]["total"] == 0
