# SPDX-License-Identifier: Apache-2.0
"""A guest's status and CPUs: whatever it says is told or taken, and nothing else."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ipitrace.base.errors import HostError
from ipitrace.storm import limits
from ipitrace.storm.linux.helper import find_helper, read_cpus, read_status
from ipitrace.storm.linux.install import remove
from ipitrace.storm.transport.shell import Finished

STATUS = {
    "abi_version": 2,
    "helper_version": "1.0",
    "module": {"loaded": True, "version": "1.0", "srcversion": "ABC"},
    "kernel": "6.12.0",
    "n_cpus": 2,
    "online": [0, 1],
    "apic_mode": "x2apic",
    "tsc_khz": 2_000_000,
    "unsupported": {"xapic": "why"},
}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(1 << 60, 1 << 200)
    | st.floats()
    | st.text(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


class Says:
    """A guest in which every program prints the same."""

    via = "none"

    def __init__(self, stdout: bytes, status: int = 0, stderr: str = "") -> None:
        self._done = Finished(status, stdout, stderr)

    def run(self, command: Sequence[str], **_more: object) -> Finished:
        # Of a former ipitrace: see test_former.py. Else nothing after it would be tried here.
        return Finished(0, b"", "") if "/var/lib/dkms/" in command[-1] else self._done


def assert_told(error: HostError) -> None:
    assert error.message.isprintable()
    assert len(error.message) < 600


def test_an_honest_status_is_taken_with_more_keys() -> None:
    said = read_status(Says(json.dumps({**STATUS, "tsc_unstable": False}).encode()), "x")
    assert (said.n_cpus, said.online, said.module.srcversion) == (2, (0, 1), "ABC")


@given(st.sampled_from(sorted(STATUS)), VALUES)
@example("n_cpus", 10_000_000_000)
@example("tsc_khz", float("nan"))
@example("online", [0, 1, 1])
@example("kernel", "\ud800")
@example("module", {"loaded": 1})
def test_whatever_a_status_says(name: str, value: object) -> None:
    try:
        said = read_status(Says(json.dumps({**STATUS, name: value}).encode()), "x")
    except HostError as error:
        assert_told(error)
        return
    assert 1 <= said.n_cpus <= limits.GUEST_CPUS
    assert set(said.online) <= set(range(said.n_cpus))


@given(st.binary(max_size=200))
@example(b"[" * 100_000)
@example(b'{"abi_version": ' + b"9" * 5_000 + b"}")
@example(b'{"abi_version": 2}')
def test_whatever_stands_in_the_place_of_a_status(data: bytes) -> None:
    with pytest.raises(HostError) as raised:
        read_status(Says(data), "x")
    assert raised.value.message.isprintable()


LINES = st.lists(
    st.tuples(
        st.sampled_from(["processor", "apicid", "flags", "model name"]),
        st.integers(-2, 5).map(str) | st.text(max_size=12),
    ),
    max_size=12,
)


@given(LINES)
@example([("processor", "0"), ("apicid", "9" * 5_000)])
@example([("processor", "\u0665"), ("apicid", "1")])
@example([("processor", "0"), ("apicid", "4294967296")])
def test_whatever_cpuinfo_says(lines: list[tuple[str, str]]) -> None:
    text = "".join(f"{name}\t: {value}\n" for name, value in lines)
    try:
        cpus = read_cpus(Says(text.encode(errors="surrogatepass")), 2)
    except HostError as error:
        assert_told(error)
        return
    if cpus.apic_ids is not None:
        assert len(set(cpus.apic_ids)) == 2
        assert all(0 <= one <= limits.APIC_ID for one in cpus.apic_ids)


@given(st.binary(max_size=100))
def test_whatever_stands_in_the_place_of_a_path(data: bytes) -> None:
    try:
        assert find_helper(Says(data)).isprintable()
    except HostError as error:
        assert_told(error)


@given(st.binary(max_size=100))
@example(b"6.12\ndebian\n\nno\n")
def test_whatever_a_guest_says_of_itself_is_removed_from_or_not(data: bytes) -> None:
    told: list[str] = []
    try:
        remove(Says(data), told.append)
    except HostError as error:
        assert_told(error)
    assert all(line.isprintable() for line in told)
