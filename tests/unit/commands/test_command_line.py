# SPDX-License-Identifier: Apache-2.0
"""How the real command ends when something goes wrong that no command expects."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from commands import ENVIRONMENT, IPITRACE, ipi, python

from ipitrace.base.errors import ExitCode
from ipitrace.base.resources import example_dir
from ipitrace.commands.group import ipitrace_group

EXAMPLE = str(example_dir())
COMMANDS = (
    ("list",),
    ("doctor",),
    ("doctor", "--json"),
    ("scenarios",),
    ("report", EXAMPLE),
    ("compare", EXAMPLE, EXAMPLE),
    ("run", "--no-trace"),
    ("watch", "--duration", "1"),
    ("ab", "--a", "true", "--b", "true"),
    ("guest", "status", "--vm", "local"),
)


def limited(what: int, limit: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(what, (limit, limit))


# A defect, made on purpose: `report` calls what raises this.
BROKEN = """
import sys
import {module} as module
def broken(*_, **__):
    raise {error}
module.{name} = broken
from ipitrace import cli
cli.main()
"""


def broken(error: str, *words: str, **options: object) -> "subprocess.CompletedProcess[str]":
    module, name = "ipitrace.commands.report", "read_run"
    return python(BROKEN.format(module=module, name=name, error=error), *words, **options)


@pytest.mark.parametrize(
    "error",
    [
        "KeyError('x\\x1b[31m')",
        "AssertionError",
        "ZeroDivisionError('division by zero')",
        "RecursionError('maximum recursion depth exceeded')",
        "OSError(5, 'Input/output error')",
        "BrokenPipeError(32, 'Broken pipe')",
        "EOFError",
        "SystemExit(0)",
        "GeneratorExit",
        "StopIteration",
        "UnicodeDecodeError('utf-8', b'x', 0, 1, 'why')",
        "ImportError('no', name='ipitrace.nothing')",
    ],
)
def test_an_unexpected_error_is_a_sentence_and_a_code_of_its_own(error: str) -> None:
    done = broken(error, "report", EXAMPLE)
    assert done.returncode == ExitCode.DEFECT, done.stderr
    assert "Traceback" not in done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith(f"ipitrace: This is a defect of ipitrace: {error.partition('(')[0]}")
    assert "in commands/report.py, line " in first
    assert "IPITRACE_TRACEBACK=1" in second
    assert done.stderr.replace("\n", "").isprintable()


def test_the_traceback_is_there_for_who_asks() -> None:
    by_option = broken("KeyError('x')", "--traceback", "report", EXAMPLE)
    by_variable = broken("KeyError('x')", "report", EXAMPLE, env={"IPITRACE_TRACEBACK": "1"})
    for done in (by_option, by_variable):
        assert done.returncode == ExitCode.DEFECT
        assert "Traceback (most recent call last):" in done.stderr
        assert "in broken" in done.stderr
    without = broken("KeyError('x')", "report", EXAMPLE, env={"IPITRACE_TRACEBACK": "0"})
    assert "Traceback" not in without.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("MemoryError", "There is not enough memory"),
        ("OSError(24, 'Too many open files', '/proc/1')", "may open no more files (/proc/1)"),
        ("OSError(28, 'No space left on device')", "There is no space left"),
        ("ImportError('No module named numpy', name='numpy')", "The Python module numpy cannot"),
    ],
)
def test_what_the_host_lacks_is_no_defect(error: str, said: str) -> None:
    done = broken(error, "report", EXAMPLE)
    assert done.returncode == ExitCode.ENVIRONMENT
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_thread_that_fails_is_told_and_no_success() -> None:
    program = """
import threading
import ipitrace.commands.report as module
original = module.read_run
def read_run(path):
    thread = threading.Thread(target=lambda: {}["lost"])
    thread.start()
    thread.join()
    return original(path)
module.read_run = read_run
from ipitrace import cli
cli.main()
"""
    done = python(program, "report", EXAMPLE)
    assert done.returncode == ExitCode.DEFECT
    assert "This is a defect of ipitrace: KeyError" in done.stderr
    assert "Traceback" not in done.stderr
    assert "unicast-running" in done.stdout


def test_errors_when_python_exits_are_sentences() -> None:
    program = """
import atexit
from ipitrace import cli
class Odd:
    def __del__(self):
        raise ValueError("in a finaliser")
def at_exit():
    raise ValueError("at exit")
atexit.register(at_exit)
odd = Odd()
cli.main()
"""
    done = python(program, "scenarios")
    assert done.returncode == ExitCode.OK
    assert "Traceback" not in done.stderr
    assert "at exit" in done.stderr
    assert "in a finaliser" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("report", "x" * 5000),
        ("report", "/dev/null/x"),
        ("compare", "x" * 5000, EXAMPLE),
        ("compare", EXAMPLE, EXAMPLE, "--output", "/dev/null/x"),
        ("compare", EXAMPLE, EXAMPLE, "--output", "y" * 5000),
        ("run", "--no-trace", "-o", "y" * 5000),
        ("run", "--no-trace", "-o", "/"),
        ("run", "--no-trace", "-o", "/proc/self/fd/0"),
        ("ab", "--a", "true", "--b", "true", "-o", "/dev/null"),
        ("ab", "--a", "true", "--b", "true", "-o", "z" * 5000),
        ("watch", "--openmetrics", "/dev/null/x"),
        ("watch", "--openmetrics", "w" * 5000),
        ("watch", "--openmetrics", "/no/such/file"),
        ("watch", "--interval", "nan"),
        ("watch", "--duration", "nan"),
        ("guest", "senders", "--vm", "local", "--duration", "nan"),
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_odd_places_and_numbers_are_no_defects(words: tuple[str, ...]) -> None:
    done = ipi(*words)
    assert done.returncode in {ExitCode.USAGE, ExitCode.ENVIRONMENT}, done.stderr[:500]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["numpy", "pyarrow", "click", "rich", "scipy", "tabulate"])
def test_a_module_that_cannot_be_loaded(tmp_path: Path, module: str) -> None:
    """As an interrupted upgrade leaves it: a package that fails when it is imported."""
    (tmp_path / f"{module}.py").write_text("raise ImportError('lib.so: file too short')\n")
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    words = ("watch", "--help") if module == "rich" else ("compare", EXAMPLE, EXAMPLE)
    done = ipi(*words, env=ENVIRONMENT | {"PYTHONPATH": path})
    assert done.returncode == ExitCode.ENVIRONMENT, done.stderr
    assert "cannot be loaded: lib.so: file too short" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("limit", [12, 63])
def test_too_few_descriptors(words: tuple[str, ...], limit: int) -> None:
    done = ipi(*words, before=limited(resource.RLIMIT_NOFILE, limit))
    assert done.returncode == ExitCode.ENVIRONMENT, done.stderr
    assert done.stdout == ""
    assert "Raise 'ulimit -n'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("mib", [60, 100, 200, 400, 1000])
def test_too_little_memory(mib: int) -> None:
    """Libraries below numpy end the process by themselves, with code 1, or hang."""
    done = ipi("compare", EXAMPLE, EXAMPLE, before=limited(resource.RLIMIT_AS, mib << 20))
    assert done.returncode == ExitCode.ENVIRONMENT, (done.returncode, done.stderr)
    assert "Raise 'ulimit -v'" in done.stderr
    assert "Traceback" not in done.stderr


def test_just_enough_memory() -> None:
    mib = 1024 + 64 * min(os.cpu_count() or 1, 64)
    done = ipi("compare", EXAMPLE, EXAMPLE, before=limited(resource.RLIMIT_AS, mib << 20))
    assert done.returncode == ExitCode.OK, done.stderr


def test_the_help_loads_no_command() -> None:
    """What each needs takes longer than the help itself."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ipitrace", "--help"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "ipitrace.commands.group" in loaded
    late = ("ipitrace.commands.", "ipitrace.render", "ipitrace.storm", "ipitrace.tracer")
    heavy = {"numpy", "pyarrow", "rich", "scipy", "psutil", "tabulate", "json", "subprocess"}
    assert heavy & loaded == set()
    assert [name for name in loaded if name.startswith(late)] == ["ipitrace.commands.group"]


def test_each_command_of_the_help_is_there() -> None:
    told = ipi("--help").stdout.partition("Commands:\n")[2].splitlines()
    names = [line.split()[0] for line in told if line.startswith("  ") and line[2] != " "]
    assert {words[0] for words in COMMANDS} == set(names)
    context = click.Context(ipitrace_group)
    for name in names:
        command = ipitrace_group.get_command(context, name)
        assert command is not None
        assert command.name == name


@pytest.mark.parametrize(
    ("words", "said", "guess"),
    [
        (("wach",), "There is no command 'wach'.", "Did you mean watch? Known: ab, compare, "),
        (("xyzzy",), "There is no command 'xyzzy'.", "Known: ab, compare, "),
        (
            ("run", "--scenrio", "x"),
            "No such option '--scenrio'.",
            "Did you mean --scenario or --sec",
        ),
        (("run", "--max"), "No such option '--max'.", "Did you mean --max-time or --max-rate? See"),
        (("guest", "instal"), "No such command 'instal'.", "Did you mean install? See 'ipitrace g"),
        (("run", "--zzzzzz"), "No such option '--zzzzzz'.", "See 'ipitrace run --help'."),
    ],
)
def test_what_is_not_known_is_told_in_our_words(
    words: tuple[str, ...], said: str, guess: str
) -> None:
    done = ipi(*words)
    assert done.returncode == ExitCode.USAGE
    first, second = done.stderr.splitlines()
    assert first == f"ipitrace: {said}"
    assert second.strip().startswith(guess)


WAITING = """
import sys, time
import ipitrace.commands.report as module
def read_run(_path):
    try:
        print("waiting", flush=True)
        time.sleep(60)
    finally:
        if "slow" in sys.argv[-1]:
            print("cleaning", flush=True)
            time.sleep(60)
module.read_run = read_run
from ipitrace import cli
cli.main()
"""


def waiting(*words: str, ignored: signal.Signals | None = None) -> "subprocess.Popen[str]":
    def before() -> None:
        if ignored is not None:
            signal.signal(ignored, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, "report", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=before,  # noqa: PLW1509 - we have no threads
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_request_to_end_is_one(number: signal.Signals) -> None:
    process = waiting("x")
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (ExitCode.INTERRUPTED, "ipitrace: Interrupted.\n")


def test_the_second_request_ends_what_the_first_has_left_to_do() -> None:
    process = waiting("slow")
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (ExitCode.INTERRUPTED, "ipitrace: Interrupted.\n")


def test_many_requests_at_once_end_in_a_sentence() -> None:
    process = waiting("x")
    for _ in range(200):
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_was_ignored_stays_ignored(number: signal.Signals) -> None:
    """nohup, or a job in the background."""
    process = waiting("x", ignored=number)
    process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=1)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == ExitCode.INTERRUPTED


def test_interrupted_while_modules_are_loaded() -> None:
    """At many moments of the start; before ipitrace's first line Python speaks for itself."""
    for delay_ms in range(60, 1000, 100):
        process = subprocess.Popen(
            [*IPITRACE, "compare", EXAMPLE, EXAMPLE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        handled = f"/proc/{process.pid}/status"
        while not _handles(handled, signal.SIGTERM):
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(delay_ms / 1000)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode in {ExitCode.OK, ExitCode.INTERRUPTED}, said
        assert "Traceback" not in said


def _handles(path: str, number: signal.Signals) -> bool:
    caught = next(line for line in Path(path).read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_an_interruption_in_code_from_a_string_has_the_same_exit_code(tmp_path: Path) -> None:
    """Dataclasses and named tuples are made so, while modules are loaded."""
    (tmp_path / "started.py").write_text("""
import ipitrace.commands.report as module
def read_run(_path):
    exec("import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)")
module.read_run = read_run
from ipitrace import cli
cli.main()
""")
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "started", "report", "x"],
        env=ENVIRONMENT | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (ExitCode.INTERRUPTED, "ipitrace: Interrupted.\n")


def test_an_interruption_in_a_callback_from_c_is_not_lost() -> None:
    program = """
import ctypes, os, signal, time
import ipitrace.commands.report as module
kind = ctypes.CFUNCTYPE(None)
def called():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0)
def read_run(_path):
    kind(called)()
    time.sleep(30)
module.read_run = read_run
from ipitrace import cli
cli.main()
"""
    done = python(program, "report", "x")
    assert (done.returncode, done.stderr) == (ExitCode.INTERRUPTED, "ipitrace: Interrupted.\n")
