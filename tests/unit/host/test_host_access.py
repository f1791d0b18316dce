# SPDX-License-Identifier: Apache-2.0
import fcntl
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from ipitrace.base.errors import ExitCode, HostError
from ipitrace.host.access import (
    NO_TRACE,
    read_lockdown,
    require_initial_pid_namespace,
    require_kvm,
    require_trace_privilege,
)
from ipitrace.host.files import HostFiles

Make = Callable[[Mapping[str, str]], HostFiles]

NS = "/proc/self/ns"
LOCKDOWN = "/sys/kernel/security/lockdown"
INITIAL = {f"{NS}/pid": "-> pid:[4026531836]", f"{NS}/user": "-> user:[4026531837]"}


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        ("fpu vmx", "modprobe kvm_intel"),
        ("fpu svm", "modprobe kvm_amd"),
        ("fpu hypervisor", "nested virtualization"),
        ("fpu", "VT-x or AMD-V in the firmware"),
    ],
)
def test_no_kvm(make_files: Make, tmp_path: Path, flags: str, hint: str) -> None:
    files = make_files({"/proc/cpuinfo": f"processor : 0\nflags\t\t: {flags}\n"})
    with pytest.raises(HostError, match="KVM is not available") as caught:
        require_kvm(str(tmp_path / "kvm"), files)
    assert hint in caught.value.hint
    assert caught.value.exit_code is ExitCode.ENVIRONMENT


def test_a_device_that_is_not_kvm() -> None:
    with pytest.raises(HostError, match="/dev/null is not the KVM device"):
        require_kvm("/dev/null")


def test_a_path_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot be opened \(Is a directory\)"):
        require_kvm(str(tmp_path))


def test_another_kvm_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: 13)
    with pytest.raises(HostError, match="version 13, not 12"):
        require_kvm("/dev/null")


def test_another_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(HostError, match="This machine is aarch64"):
        require_kvm()


@pytest.mark.parametrize(
    "effective",
    [
        pytest.param("000001ffffffffff", id="root"),
        pytest.param("0000003fffffffff", id="root before 5.8"),
        pytest.param("0000000000200000", id="CAP_SYS_ADMIN"),
        pytest.param("000000c000000000", id="CAP_BPF and CAP_PERFMON"),
    ],
)
def test_enough_privilege(make_files: Make, effective: str) -> None:
    require_trace_privilege(
        make_files(INITIAL | {"/proc/self/status": f"Name:\tx\nCapEff:\t{effective}\n"})
    )


@pytest.mark.parametrize(
    "status",
    [
        pytest.param("CapEff:\t0000000000000000\n", id="nobody"),
        pytest.param("CapEff:\t0000008000000000\n", id="CAP_BPF alone"),
        pytest.param("CapEff:\t0000004000000000\n", id="CAP_PERFMON alone"),
        pytest.param("CapPrm:\t000001ffffffffff\n", id="unreadable"),
    ],
)
def test_too_little_privilege(make_files: Make, status: str) -> None:
    files = make_files(INITIAL | {"/proc/self/status": status})
    with pytest.raises(HostError, match="CAP_BPF and CAP_PERFMON") as caught:
        require_trace_privilege(files)
    assert "--no-trace" not in caught.value.hint, "most commands lack it"
    with pytest.raises(HostError, match="CAP_BPF and CAP_PERFMON") as caught:
        require_trace_privilege(files, otherwise=NO_TRACE)
    assert caught.value.hint.endswith(f"; {NO_TRACE}.")


ROOT = {"/proc/self/status": "CapEff:\t000001ffffffffff\n"}


def test_root_of_a_container_only(make_files: Make) -> None:
    with pytest.raises(HostError, match="user namespace"):
        require_trace_privilege(make_files(ROOT | {f"{NS}/user": "-> user:[4026532001]"}))


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("[none] integrity confidentiality\n", "none"),
        ("none [integrity] confidentiality\n", "integrity"),
        ("none integrity [confidentiality]\n", "confidentiality"),
        ("something else\n", None),
    ],
)
def test_lockdown(make_files: Make, text: str, state: str | None) -> None:
    files = make_files(ROOT | INITIAL | {LOCKDOWN: text})
    assert read_lockdown(files) == state
    if state == "confidentiality":
        with pytest.raises(HostError, match="locked down"):
            require_trace_privilege(files)
    else:
        require_trace_privilege(files)


def test_no_lockdown_file(make_files: Make) -> None:
    assert read_lockdown(make_files({})) is None


def test_pid_namespaces(make_files: Make) -> None:
    require_initial_pid_namespace(make_files(INITIAL))
    require_initial_pid_namespace(make_files({}))


def test_inside_a_pid_namespace(make_files: Make) -> None:
    with pytest.raises(HostError, match="pid namespace") as caught:
        require_initial_pid_namespace(make_files({f"{NS}/pid": "-> pid:[4026532999]"}))
    assert "--pid=host" in caught.value.hint
