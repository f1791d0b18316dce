# SPDX-License-Identifier: Apache-2.0
"""A kernel that offers little, laid out as directories."""

import shutil
from pathlib import Path

from ipitrace.tracer.events import EVENT_BY_TRACEPOINT
from ipitrace.tracer.kernel import classic_columns, raw_offer
from ipitrace.tracer.program import plan

TRACEFS = Path(__file__).parents[2] / "data" / "tracefs"
WANTED = [EVENT_BY_TRACEPOINT[name] for name in ("kvm_exit", "kvm_entry")]


def test_no_btf_at_all(tmp_path: Path) -> None:
    offer = raw_offer(WANTED, tmp_path)
    assert offer.no_args == "the kernel has no BTF (No such file or directory)"
    assert set(plan(WANTED, offer).left_out) == {"kvm_exit", "kvm_entry"}


def test_unreadable_btf(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(b"\x7fELF" + bytes(60))
    offer = raw_offer(WANTED, tmp_path)
    assert offer.no_args is not None
    assert "unreadable" in offer.no_args


def test_formats_of_the_events_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "events/kvm/kvm_exit").mkdir(parents=True)
    shutil.copy(TRACEFS / "6.18/kvm_exit", tmp_path / "events/kvm/kvm_exit/format")
    assert classic_columns(WANTED, tmp_path).keys() == {"kvm_exit"}
