# SPDX-License-Identifier: Apache-2.0
"""The kernel's BTF, alone and as the base of a module's."""

import contextlib

from ipitrace.tracer.btf import Btf, BtfError, tracepoint_args


def fuzz(data: bytes) -> None:
    half = data.find(b"\x9f\xeb", 2)
    blobs = (data[:half], data[half:]) if half > 0 else (data,)
    base = None
    for blob in blobs:
        with contextlib.suppress(BtfError):
            base = Btf(blob, base)
        if base is None:
            return
        for ask in (
            lambda btf: btf.member_offset("task_struct", "pid"),
            lambda btf: tracepoint_args(btf, "kvm_exit"),
            lambda btf: btf.func_args("f"),
            lambda btf: [btf.shape(i) for i in range(min(btf.type_end, 64))],
        ):
            with contextlib.suppress(BtfError):
                ask(base)
