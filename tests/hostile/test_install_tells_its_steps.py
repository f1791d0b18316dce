# SPDX-License-Identifier: Apache-2.0
"""`ipitrace guest install` says what it is doing while it does it, in a pipe and on a terminal."""

import os
import pty
import re
import subprocess

import test_agent_guest
from commands import ENVIRONMENT, IPITRACE
from harness import assert_harmless

from ipitrace.base.errors import ExitCode

BUILDS = test_agent_guest.Mode("honest", words=("guest", "install"))
STEPS = (
    "connecting to hostile",
    "reading the guest's state",
    "copying",
    "building ipistorm.ko in the guest for Linux 6.12.0",
    "loading ipistorm",
)


def test_a_line_a_step() -> None:
    done = test_agent_guest.play(BUILDS)
    assert_harmless(done, frozenset({ExitCode.OK}))
    lines = done.stderr.splitlines()
    assert len(lines) == len(STEPS)
    for line, step in zip(lines, STEPS, strict=True):
        assert line.startswith(step)
    assert "built ipistorm.ko for Linux 6.12.0" in done.stdout
    assert not any(step in done.stdout for step in STEPS)


def test_one_line_of_a_terminal() -> None:
    ours, its = pty.openpty()
    with test_agent_guest.answering(BUILDS) as folder:
        words = [*BUILDS.words, "--vm", "hostile", "--via", f"qga://{folder}/agent.sock"]
        done = subprocess.run(
            [*IPITRACE, *words],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=its,
            check=False,
        )
    os.close(its)
    said = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == ExitCode.OK, said
    drawn = [text for text in said.split("\r\x1b[K") if text]
    assert len(drawn) >= len(STEPS)
    assert all(re.fullmatch(r"[ -~]+, \d+ s", text) for text in drawn), said
    begun = [step for step in STEPS if any(text.startswith(step) for text in drawn)]
    assert begun == list(STEPS)
    assert said.endswith("\r\x1b[K")
