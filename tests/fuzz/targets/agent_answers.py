# SPDX-License-Identifier: Apache-2.0
"""A guest agent's answers, each line of the input one; the last is said for ever."""

import contextlib
import json
from typing import Any

from ipitrace.errors import HostError, IpitraceError
from ipitrace.storm.qga import open_qga

from ..pieces import no_waiting


class _Agent:
    via = "qga"

    def __init__(self, lines: list[bytes]) -> None:
        self._lines = lines

    def ask(self, command: str, **_arguments: object) -> Any:
        line = self._lines[0] if len(self._lines) == 1 else self._lines.pop(0)
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            raise HostError(f"The guest agent refused {command}.", "") from None


def fuzz(data: bytes) -> None:
    with contextlib.suppress(IpitraceError), no_waiting():
        agent = _Agent(data.split(b"\n"))
        with open_qga(agent) as shell:
            shell.run(["true"], timeout_s=5.0)
