# SPDX-License-Identifier: Apache-2.0
r"""What a guest says while ipitrace_storm is put into it and taken out; parts between \xff.

First what it says of itself, then what each command after that prints; what is there of a
former ipitrace it is asked only if that comes next. The last byte says how the last of them and
all later ones end.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final
from unittest import mock

from ipitrace.base.errors import IpitraceError
from ipitrace.base.foreign import plain_lines
from ipitrace.storm.linux import install
from ipitrace.storm.transport.shell import Finished

from ..pieces import STATUS, SayingShell

_FORMER: Final = (b"ours ", b"other ")


def fuzz(data: bytes) -> None:
    status = data[-1] % 4 if data else 0
    for act in (_install, install.remove):
        said = [] if not data else data[:-1].split(b"\xff")
        first = said.pop(0) if said else b""

        def answer(
            command: Sequence[str], *, first: bytes = first, said: list[bytes] = said
        ) -> Finished:
            if "uname -r" in command[-1]:
                return Finished(0, first, "")
            if command[-1] == "status":
                return Finished(0, STATUS, "")
            if "/var/lib/dkms/" in command[-1] and not (said and said[0].startswith(_FORMER)):
                return Finished(0, b"", "")
            last = len(said) <= 1
            text = said.pop(0) if said else b""
            return Finished(status if last else 0, text, text.decode(errors="replace").strip())

        with contextlib.suppress(IpitraceError):
            act(SayingShell(answer), _tell)


def _install(shell: SayingShell, tell: install.Tell) -> None:
    with mock.patch.object(install, "_files", return_value={"a": Path(__file__)}):
        install.install(shell, tell, _step)


@contextlib.contextmanager
def _step(what: str) -> Iterator[Callable[[], None]]:
    assert plain_lines(what) == what
    yield lambda: None


def _tell(line: str) -> None:
    assert plain_lines(line) == line
