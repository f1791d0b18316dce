# SPDX-License-Identifier: Apache-2.0
"""How far `ipitrace ab` is, as a person at a terminal sees it."""

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from ipitrace.base.units import spell_time
from ipitrace.commands.turns import Turns
from ipitrace.render import progress

CLEARED = "\r\x1b[K"


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, TextIO]]:
    """A terminal's far end, and the near one, to which is written."""
    master, slave = os.openpty()
    os.set_blocking(master, False)
    monkeypatch.setattr(progress, "_DELAY_S", 0.0)
    with Path(os.ttyname(slave)).open("w") as stream:
        yield master, stream
    os.close(slave)
    os.close(master)


def drawn(master: int, n: int) -> list[str]:
    """What was drawn since, line over line: `n` times at least, once it has come through."""
    text = ""
    until_s = time.monotonic() + (5.0 if n else 0.1)
    while text.count(CLEARED) < n or not n:
        with contextlib.suppress(BlockingIOError):
            text += os.read(master, 65536).decode()
        if time.monotonic() > until_s:
            break
        time.sleep(0.01)
    return text.split(CLEARED)[1:]


def test_a_terminal_shows_round_side_and_time_left(
    ends: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal, stream = ends
    monkeypatch.setattr(sys, "stderr", stream)  # here: pytest puts its own there before
    with Turns(2) as turns:
        turns.starts(1, "a")
        turns.goes_on()
        assert drawn(terminal, 1) == [f"[{'.' * 30}]   0% round 1 of 2, A"]
        time.sleep(0.1)
        turns.goes_on()
        assert drawn(terminal, 0) == [], "the host that is measured is left alone"
        turns.ended(1)
        turns.starts(1, "b")
        turns.goes_on()
        cleared, bar = drawn(terminal, 2)
        assert cleared == ""
        assert re.fullmatch(r"\[#{8}\.{22}\]  25% round 1 of 2, B, about \d s left", bar)
        turns.says("It is repeated.")
        assert drawn(terminal, 1) == ["It is repeated.\r\n"]
        turns.goes_on()
        assert drawn(terminal, 1) == [bar]
    assert drawn(terminal, 1) == [""], "nothing is left behind"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0 s"), (99.4, "99 s"), (100, "2 min"), (5900, "98 min"), (6000, "1.7 h")],
)
def test_a_time_to_wait(seconds: float, said: str) -> None:
    assert spell_time(seconds) == said
