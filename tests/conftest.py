# SPDX-License-Identifier: Apache-2.0
"""What live tests need, and whether a machine without it skips them or fails them.

`@pytest.mark.live` needs all of root, kvm and bpf; `@pytest.mark.live("kvm")` just what it
names. On a machine that lacks one the test is skipped, unless the environment variable
IPITRACE_REQUIRE (names separated by commas) says the machine must have it: then it fails.
"""

import ctypes
import functools
import os
import signal
import struct
from collections.abc import Callable

import pytest
from hypothesis import settings

from ipitrace.base.errors import HostError
from ipitrace.tracer.bcc_import import import_bcc

# Time is measured in benchmarks; a busy machine must not fail a test of values.
settings.register_profile("ipitrace", deadline=None)
settings.load_profile("ipitrace")

REQUIRE_VARIABLE = "IPITRACE_REQUIRE"

# arch/x86/entry/syscalls/syscall_64.tbl; enum bpf_cmd and bpf_map_type in uapi/linux/bpf.h
SYS_BPF = 321
BPF_MAP_CREATE = 0
BPF_MAP_TYPE_ARRAY = 2


def _lacks_root() -> str | None:
    euid = os.geteuid()
    return None if euid == 0 else f"root: the effective user id is {euid}"


def _lacks_kvm() -> str | None:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"kvm: {error}"
    return None


def _lacks_bpf() -> str | None:
    try:
        import_bcc()
    except HostError as error:
        return f"bpf: {error.message}"
    # The first members of bpf_attr for BPF_MAP_CREATE: type, key and value size, entries.
    attr = ctypes.create_string_buffer(struct.pack("=4I", BPF_MAP_TYPE_ARRAY, 4, 4, 1), 16)
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    fd: int = syscall(SYS_BPF, BPF_MAP_CREATE, attr, len(attr))
    if fd < 0:
        return f"bpf: no map can be created: {os.strerror(ctypes.get_errno())}"
    os.close(fd)
    return None


# Each says what is lacking, or None.
CHECKS: dict[str, Callable[[], str | None]] = {
    "root": functools.cache(_lacks_root),
    "kvm": functools.cache(_lacks_kvm),
    "bpf": functools.cache(_lacks_bpf),
}


def _known(names: set[str], where: str) -> set[str]:
    unknown = sorted(names - CHECKS.keys())
    if unknown:
        choices = ", ".join(CHECKS)
        raise pytest.UsageError(f"{where}: unknown name {unknown[0]!r}; choose from {choices}")
    return names


def _required() -> set[str]:
    names = (name.strip() for name in os.environ.get(REQUIRE_VARIABLE, "").split(","))
    return _known({name for name in names if name}, REQUIRE_VARIABLE)


def _needs(item: pytest.Item) -> set[str]:
    marker = item.get_closest_marker("live")
    if marker is None:
        return set()
    return _known(set(marker.args or CHECKS), item.nodeid)


def pytest_configure() -> None:
    _required()
    # Whoever starts us in the background may have these ignored, and our children with us.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        _needs(item)


def pytest_runtest_setup(item: pytest.Item) -> None:
    needs = _needs(item)
    lacking = {name: why for name, check in CHECKS.items() if name in needs and (why := check())}
    must_have = [why for name, why in lacking.items() if name in _required()]
    if must_have:
        pytest.fail(f"required by {REQUIRE_VARIABLE}: {'; '.join(must_have)}", pytrace=False)
    if lacking:
        pytest.skip("; ".join(lacking.values()))
