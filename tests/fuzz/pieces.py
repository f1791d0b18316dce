# SPDX-License-Identifier: Apache-2.0
"""What targets are made of: an input cut into values, a guest that says what the input says."""

import contextlib
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar
from unittest import mock

from ipitrace.storm.transport.shell import Finished

T = TypeVar("T")
WORD: Final = struct.Struct("<q")
ODD_NUMBERS: Final = (0, 1, -1, 2**15, 2**31 - 1, 2**31, 2**32, 2**63 - 1, -(2**63), 2**64, 10**19)
ODD_VALUES: Final = (
    *(None, True, False, "", "x", "\ud800", "\x1b[31m", "a\0b", [], {}, [[]], {"": {}}),
    *(0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf"), 10**400, *ODD_NUMBERS),
)
"""What JSON can hold and nobody expects."""


class Pieces:
    """An input as a stream of values; at its end all are zero or empty."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, n: int) -> bytes:
        """The next bytes, zeros behind the end."""
        taken = self._data[self._at : self._at + n]
        self._at += n
        return taken.ljust(n, b"\0")

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        """Any signed 64-bit number, the odd ones more often."""
        which = self.byte()
        if which < len(ODD_NUMBERS):
            return ODD_NUMBERS[which]
        if which < 128:
            return self.byte()
        return int(WORD.unpack(self.take(8))[0])

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.byte() % len(choices)]

    def text(self) -> str:
        """Some characters, broken UTF-8 kept as lone surrogates."""
        return self.take(self.byte()).decode(errors="surrogateescape").rstrip("\0")

    def rest(self) -> bytes:
        rest, self._at = self._data[self._at :], len(self._data)
        return rest

    def lines(self) -> list[bytes]:
        return self.rest().split(b"\n")


class SayingShell:
    """A way into a guest whose programs print what the test says, whatever they are asked."""

    via = "ssh"

    def __init__(self, answer: Callable[[Sequence[str]], Finished]) -> None:
        self._answer = answer

    def run(self, command: Sequence[str], **_how: object) -> Finished:
        return self._answer(command)


STATUS: Final = (
    b'{"abi_version": 2, "helper_version": "1", "module": {"loaded": true, "version": "1", '
    b'"srcversion": "ABC"}, "kernel": "6.1.0", "n_cpus": 2, "online": [0, 1], "apic_mode": '
    b'"x2apic", "tsc_khz": 2000000, "unsupported": {"halted": "no"}}'
)
CPUINFO: Final = (
    b"processor\t: 0\nflags\t\t: fpu hypervisor\napicid\t\t: 0\n\n"
    b"processor\t: 1\nflags\t\t: fpu hypervisor\napicid\t\t: 1\n"
)


def saying_guest(
    *, status: bytes = STATUS, cpuinfo: bytes = CPUINFO, run: Finished | None = None
) -> SayingShell:
    """A guest with the helper in it."""

    def answer(command: Sequence[str]) -> Finished:
        if command[-1] == "status":
            return Finished(0, status, "")
        if command[0] == "cat":
            return Finished(0, cpuinfo, "")
        if "run" in command and run is not None:
            return run
        return Finished(0, b"/var/lib/ipitrace/ipitrace-storm\n", "")

    return SayingShell(answer)


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Time passes only by sleeping, and that takes none."""
    now = time.monotonic()

    def sleep(seconds: float) -> None:
        nonlocal now
        now += max(seconds, 1e-4)

    def monotonic() -> float:
        nonlocal now
        now += 1e-4  # who looks at the clock without sleeping gets on, too
        return now

    with mock.patch("time.sleep", sleep), mock.patch("time.monotonic", monotonic):
        yield
