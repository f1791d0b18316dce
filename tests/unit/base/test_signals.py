# SPDX-License-Identifier: Apache-2.0
"""What may not be left half done is not interrupted; test_endings.py does it to real runs."""

import subprocess
import sys

import pytest

BEGIN = """
import os, signal, threading
from ipitrace.base import signals
signals.install()

def ask():
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000):  # Python handles it between two of these
        pass
"""


def said_by(script: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize("times", [1, 2, 3])
def test_an_interruption_waits_until_the_step_is_done(times: int) -> None:
    script = f"""
try:
    with signals.signals_deferred(), signals.signals_deferred():
        for _ in range({times}):
            ask()
        print("done")
    print("never")
except KeyboardInterrupt:
    print("interrupted")
print("over")
"""
    assert said_by(script) == ["done", "interrupted", "over"]


def test_without_a_request_nothing_happens_and_a_later_one_interrupts_at_once() -> None:
    script = """
@signals.signals_deferred()
def step():
    return "stepped"
print(step())
try:
    ask()
    print("never")
except KeyboardInterrupt:
    print("interrupted")
"""
    assert said_by(script) == ["stepped", "interrupted"]


def test_what_another_thread_does_holds_nothing_back() -> None:
    script = """
inside, over = threading.Event(), threading.Event()
def other():
    with signals.signals_deferred():
        inside.set()
        over.wait(10)
thread = threading.Thread(target=other)
thread.start()
inside.wait(10)
try:
    ask()
    print("never")
except KeyboardInterrupt:
    print("interrupted")
over.set()
thread.join()
"""
    assert said_by(script) == ["interrupted"]


def test_a_lost_interruption_is_sent_again_however_many_were_ignored_since() -> None:
    """Python drops an exception inside a finaliser."""
    script = """
import time
from ipitrace.base import defects
defects.watch_threads()

class Loses:
    def __del__(self):
        for _ in range(7):  # more than two are ignored
            try:
                ask()
            except KeyboardInterrupt:
                pass
        raise KeyboardInterrupt

Loses()
try:
    time.sleep(5)
    print("slept")
except KeyboardInterrupt:
    print("interrupted")
"""
    assert said_by(script) == ["interrupted"]
