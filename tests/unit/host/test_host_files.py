# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipitrace.host.files import HOST, HostFiles, parse_cpu_list

Make = Callable[[Mapping[str, str]], HostFiles]


def test_what_is_there(make_files: Make) -> None:
    files = make_files({"/proc/a": " x y\n", "/proc/b": "-12\n", "/proc/c": "-> anon_inode:kvm-vm"})
    assert files.text("/proc/a") == "x y"
    assert files.number("/proc/b") == -12
    assert files.link("/proc/c") == "anon_inode:kvm-vm"
    assert files.names("/proc") == ("a", "b", "c")


def test_what_is_not_there(make_files: Make) -> None:
    files = make_files({"/proc/a": "text", "/proc/c": "-> nowhere"})
    assert files.text("/proc/none") is None
    assert files.text("/proc") is None
    assert files.text("/proc/c") is None
    assert files.number("/proc/a") is None
    assert files.link("/proc/a") is None
    assert files.names("/sys") == ()
    assert files.listing("/sys") is None
    assert files.listing("/proc/a") is None


def test_a_file_that_opens_but_cannot_be_read() -> None:
    # Address 0 of our own memory: open succeeds, read fails with EIO.
    assert Path("/proc/self/mem").exists()
    assert HOST.text("/proc/self/mem") is None


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "cmdline").write_bytes(b"quiet \xff\n")
    assert HostFiles(tmp_path).text("/cmdline") == "quiet \ufffd"


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("", ()), ("\n", ()), ("(null)", ()), ("0", (0,)), ("0-3,8,10-11\n", (0, 1, 2, 3, 8, 10, 11))],
)
def test_cpu_lists(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize("text", ["x", "1-", "1,,2", "0-x"])
def test_what_is_no_cpu_list(text: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        parse_cpu_list(text)


@given(st.sets(st.integers(0, 300)))
def test_any_cpu_set_survives(cpus: set[int]) -> None:
    assert parse_cpu_list(",".join(map(str, cpus))) == tuple(sorted(cpus))
