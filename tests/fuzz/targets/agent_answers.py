# SPDX-License-Identifier: Apache-2.0
"""A guest agent's answers by way of libvirt, each line of the input one; the last for ever."""

import contextlib

from ipitrace.base.errors import IpitraceError
from ipitrace.storm.transport.agent import libvirt_answer, unknown_answer
from ipitrace.storm.transport.qga import open_qga

from ..pieces import no_waiting


class _Agent:
    via = "qga+libvirt"

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def ask(self, command: str, **_arguments: object) -> object:
        line = self._lines[0] if len(self._lines) == 1 else self._lines.pop(0)
        try:
            return libvirt_answer(line)
        except ValueError as error:
            raise unknown_answer(command, error) from error


def fuzz(data: bytes) -> None:
    with contextlib.suppress(IpitraceError), no_waiting():
        agent = _Agent(data.decode(errors="surrogateescape").split("\n"))
        with open_qga(agent) as shell:
            shell.run(["true"], stdin=b"x", timeout_s=5.0, limit_bytes=64)
