# SPDX-License-Identifier: Apache-2.0
"""A hostile guest behind its agent's socket, driven through the real commands."""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import harness
import numpy as np
import pytest
from harness import Ahead, Outcome, assert_harmless

from ipitrace.abi.storm import FILE, RECEIPT, SEND
from ipitrace.base.errors import ExitCode

LIMIT_S: Final = 300.0
STATUS: Final = ("guest", "status")
INSTALL: Final = ("guest", "install", "--module", "module.ko")
REMOVE: Final = ("guest", "remove")
RUN: Final = harness.RUN
SIGNS: Final = {**harness.SIGNS, "insmod": "insmod", "rmmod": "rmmod", "wc -l": "count"}
SYNC, EXEC, ENDED = "guest-sync-delimited", "guest-exec", "guest-exec-status"
OPEN, READ, CLOSE = "guest-file-open", "guest-file-read", "guest-file-close"
ESCAPES: Final = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m"
TOTAL: Final = harness.WARMUP + harness.COUNT
LATE: Final = np.frombuffer(harness.records(), SEND, TOTAL, FILE.itemsize)["ack_tsc"] + 300
LONG: Final = "9" * 5_000
NESTED: Final = "[" * 100_000 + "]" * 100_000


@dataclass(frozen=True, eq=False)
class Mode:
    """One way to misbehave.

    Attributes:
        words: the command that is run against it.
        at: where: a command of the agent, or that and the program concerned.
        actions: what it does there, in the place of its answer.
        files: what programs in the guest print, where that is not honest.
        codes: their exit codes, likewise.
        said: in stderr.
    """

    name: str
    words: Sequence[str] = RUN
    at: Sequence[str] = ()
    actions: Sequence[tuple[str, Any]] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    codes: Mapping[str, int] = field(default_factory=dict)
    said: str = ""


def at(name: str, where: str, *actions: tuple[str, Any], **more: Any) -> Mode:
    return Mode(name, at=[where], actions=actions, **more)


def raw(name: str, where: str, text: str, **more: Any) -> Mode:
    return at(name, where, ("say", text), **more)


def status(name: str, said: str = "", **changes: Any) -> Mode:
    """A helper whose status is not honest."""
    text = json.dumps({**harness.STATUS, **changes})
    return Mode(name, words=STATUS, files={"status": text.encode()}, said=said)


def storm(name: str, said: str, changes: Mapping[str, Any], cut: int | None = None) -> Mode:
    """A storm file whose header is not honest."""
    data = bytearray(harness.records())
    header = np.frombuffer(data, FILE, 1)
    for key, value in changes.items():
        header[key] = value
    return Mode(name, files={"run": bytes(data[:cut])}, said=said)


def storm_status(name: str, said: str, **changes: int) -> Mode:
    data = bytearray(harness.records())
    words = np.frombuffer(data, FILE, 1)["status"]
    for key, value in changes.items():
        words[key] = value
    return Mode(name, files={"run": bytes(data)}, said=said)


def records(name: str, said: str, which: str, **fields: Any) -> Mode:
    """A storm file that has its shape, and records that cannot be."""
    data = bytearray(harness.records())
    sends_at = FILE.itemsize
    receipts_at = sends_at + TOTAL * SEND.itemsize + 2 * 8
    where, dtype = (sends_at, SEND) if which == "sends" else (receipts_at, RECEIPT)
    log = np.frombuffer(data, dtype, TOTAL, where)
    for key, value in fields.items():
        log[key] = value
    return Mode(name, files={"run": bytes(data)}, said=f"cannot be true: {said}")


def counts(name: str, sender: int, target: int) -> Mode:
    data = bytearray(harness.records())
    log = np.frombuffer(data, "<u8", 2, FILE.itemsize + TOTAL * SEND.itemsize)
    log[:] = (sender, target)
    return Mode(name, files={"run": bytes(data)}, said="do not match the request: n_receipts")


ODD = "is not valid"
HONEST: Final = Mode("honest")
MODES: Final = (
    # The connection, and the first question.
    at("closes at once", "connect", ("close", 2), said="was lost"),
    at("dies at once", "connect", ("die", None), said="was lost"),
    at("never answers", SYNC, ("sleep", 3600), said="does not answer"),
    raw("half a line", SYNC, '\xff{"return": 1', said="does not answer"),
    at("answers for others for ever", SYNC, ("flood", '\xff{"return": 1}\n'), said=ODD),
    at("no sentinel", SYNC, ("flood", '{"return": 1}\n'), said=ODD),
    at("an endless line", SYNC, ("flood", "A"), said=ODD),
    at("an endless line behind the sentinel", SYNC, ("say", "\xff"), ("flood", "A"), said=ODD),
    at("a byte a second", SYNC, ("drip", '{"return": 1}'), said="does not answer"),
    at("events for ever", EXEC, ("flood", '{"event": "E", "data": {}}\n'), said=ODD),
    at("large events for ever", EXEC, ("flood", json.dumps({"event": "E" * 60_000}) + "\n")),
    # Any answer.
    raw("no JSON", EXEC, "return 1\n", said=ODD),
    raw("no UTF-8", EXEC, '{"return": "\xfe\xfd"}\n', said=ODD),
    raw("no object", EXEC, "[1]\n", said=ODD),
    raw("empty lines", EXEC, "\n\n\n", said=ODD),
    raw("deep nesting", EXEC, f'{{"return": {NESTED}}}\n', said="nested too deeply"),
    raw("5,000 digits", EXEC, f'{{"return": {{"pid": {LONG}}}}}\n', said=ODD),
    raw("NaN", EXEC, '{"return": {"pid": NaN}}\n', said="a number that is out of range"),
    raw("Infinity", EXEC, '{"return": {"pid": -Infinity}}\n', said=ODD),
    raw("duplicate keys", EXEC, '{"return": {"pid": 1, "pid": "x"}}\n', said=ODD),
    raw("a lone surrogate", EXEC, '{"return": {"pid": "\\ud800"}}\n', said=ODD),
    raw("neither return nor error", EXEC, '{"id": 5}\n' * 2_000, said=ODD),
    raw("a huge answer", EXEC, f'{{"return": "{"A" * (8 << 20)}"}}\n', said="2097152 bytes"),
    raw("many small values", EXEC, f'{{"return": [{"[]," * 600_000}0]}}\n', said="values"),
    at("answers twice", EXEC, ("honest", ""), ("honest", ""), said=ODD),
    raw("an error", EXEC, '{"error": {"class": "E", "desc": "no"}}\n', said="refused"),
    raw(
        "an error with escapes",
        EXEC,
        json.dumps({"error": {"class": "E", "desc": ESCAPES * 1_000}}) + "\n",
        said="refused guest-exec: \\x1b]0;owned",
    ),
    raw("an error of another shape", EXEC, '{"error": "no"}\n', said=ODD),
    raw("an error without a word", EXEC, '{"error": {"desc": 5}}\n', said=ODD),
    # Programs.
    at("no pid", EXEC, ("answer", {}), said="'pid' is missing"),
    at("a negative pid", EXEC, ("answer", {"pid": -1}), said="'pid' is not"),
    at("a pid that is true", EXEC, ("answer", {"pid": True}), said="'pid' is bool, not int"),
    at("closes in mid-way", f"{EXEC} status", ("close", 2), said="was lost"),
    at("dies in mid-way", f"{ENDED} status", ("die", None), said="was lost"),
    at("never ends", f"{ENDED} status", ("answer", {"exited": False}), said="did not end within"),
    at("exited in a word", ENDED, ("merge", {"exited": "yes"}), said=ODD),
    at("exited lacks", ENDED, ("without", "exited"), said="'exited' is missing"),
    at("an exit code of 31 digits", ENDED, ("merge", {"exitcode": 10**30}), said=ODD),
    at("a negative exit code", ENDED, ("merge", {"exitcode": -1}), said=ODD),
    at("no exit code, no signal", ENDED, ("without", "exitcode"), said="'signal' is missing"),
    at("output that is a list", ENDED, ("merge", {"out-data": [1]}), said=ODD),
    at("output that is no base64", ENDED, ("merge", {"out-data": "\u00e9!!"}), said=ODD),
    at("output of 8 MiB", ENDED, ("merge", {"out-data": "QUFB" * (2 << 20)}), said=ODD),
    at("another folder", ENDED, ("merge", {"out-data": "L2V0Yw=="}), said="created no folder"),
    at(
        "a folder with escapes",
        f"{ENDED} mktemp",
        ("merge", {"out-data": "L3RtcC9pcGl0cmFjZS4bXTA7b3duZWQH"}),
        said="created no folder",
    ),
    # Files.
    at("a handle in words", OPEN, ("answer", "5"), said=ODD),
    at("a handle of 40 digits", OPEN, ("answer", 10**40), said=ODD),
    at("a file without an end", f"{READ} status", ("zeros", 1 << 20), words=STATUS),
    at("records without an end", f"{READ} run", ("zeros", 1 << 10)),
    at("a file in drops", f"{READ} status", ("zeros", 1), said="was not received from the guest"),
    at("count is negative", READ, ("merge", {"count": -5}), said="'count' is not"),
    at("count is huge", READ, ("merge", {"count": 1 << 60}), said="'count' is not"),
    at("count in words", READ, ("merge", {"count": "many"}), said=ODD),
    at("more than was asked for", f"{READ} run", ("zeros", 1 << 20), said="'count' is not"),
    at("fewer than announced", READ, ("merge", {"count": 4}), said="'buf-b64' has"),
    at("no base64", READ, ("merge", {"buf-b64": "%%%"}), said=ODD),
    at("base64 that is a number", READ, ("merge", {"buf-b64": 7}), said=ODD),
    at("eof lacks", READ, ("without", "eof"), said="'eof' is missing"),
    at("closes while it reads", f"{READ} run", ("close", 2), said="was lost"),
    # The helper.
    Mode("no helper", words=STATUS, codes={"helper": 1}, said="has no ipitrace-storm"),
    Mode("a helper with escapes", words=STATUS, files={"helper": ESCAPES.encode()}),
    Mode("a helper of 1 MiB", words=STATUS, files={"helper": b"/" * (1 << 20)}),
    Mode("no status", words=STATUS, files={"status": b""}, said="is not valid"),
    Mode("a status that fails", words=STATUS, codes={"status": 3}, said="status 3"),
    Mode(
        "a status that fails with escapes",
        words=STATUS,
        codes={"status": 3},
        files={"status.err": ESCAPES.encode() * 100_000},
        said="\\x1b",
    ),
    Mode("a nested status", words=STATUS, files={"status": NESTED.encode()}, said="too deeply"),
    status("10 billion CPUs", "n_cpus is not 1 to 4096", n_cpus=10_000_000_000),
    Mode(
        "10 billion CPUs, to be measured",
        files={"status": json.dumps({**harness.STATUS, "n_cpus": 10**10}).encode()},
        said="n_cpus is not 1 to 4096",
    ),
    status("no CPUs", "n_cpus is not", n_cpus=0),
    status("CPUs in words", "n_cpus is str, not int", n_cpus="two"),
    status("CPUs that it has not", "online is not a rising list", online=[0, 1, 7]),
    status("CPUs twice", "online is not a rising list", online=[0, 0, 1]),
    status("a TSC of 1e30", "a number that is out of range", tsc_khz=10**30),
    status("a TSC of 1e18", "tsc_khz is not", tsc_khz=10**18),
    status("a long kernel", "too long", kernel="6" * 10_000),
    status("a kernel with escapes", "cannot be printed", kernel=ESCAPES),
    status("a kernel that is a lone surrogate", "not Unicode", kernel="\ud800"),
    status(
        "10,000 reasons", "unsupported has more", unsupported={str(i): "" for i in range(10_000)}
    ),
    status("reasons that are numbers", "is int, not str", unsupported={"x2apic": 5}),
    status("a module that is a list", "module is list", module=[]),
    status("another version", "has version 99", abi_version=99),
    status(
        "a version of 4,000 digits", "a number that is out of range", abi_version=int("9" * 4_000)
    ),
    # The guest's CPUs.
    Mode("a CPU in words", files={"cpuinfo": b"processor: zero\n"}, said="is not a CPU number"),
    Mode(
        "an APIC id of 5,000 digits",
        files={"cpuinfo": f"processor: 0\napicid: {LONG}\n".encode()},
        said="is not a CPU number",
    ),
    Mode(
        "APIC ids twice",
        files={"cpuinfo": b"processor: 0\napicid: 1\n\nprocessor: 1\napicid: 1\n"},
        said="the same APIC id",
    ),
    Mode("CPUs of 17 MiB", files={"cpuinfo": b"x" * (17 << 20)}, said="printed more than"),
    # The records.
    Mode("no records", files={"run": b""}, said="no records"),
    Mode("a storm that fails", codes={"run": 4}, files={"run.err": ESCAPES.encode()}),
    storm("a header of 4 GiB", "header_bytes is", {"header_bytes": 0xFFFFFFFF}),
    storm("a header of 0 bytes", "header_bytes is", {"header_bytes": 0}),
    storm("2^64 sends", "n_sends is", {"n_sends": (1 << 64) - 1}),
    storm("2^32 CPUs", "n_vcpus is", {"n_vcpus": (1 << 32) - 1}),
    storm("vector 2^32", "vector is", {"vector": (1 << 32) - 1}),
    storm("TSC of 2^64 kHz", "tsc_khz is", {"tsc_khz": (1 << 64) - 1}),
    storm("another ABI", "has version 7", {"abi_version": 7}),
    storm("records that end early", "are cut off", {}, cut=-5),
    storm("fewer sends", "n_receipts", {"n_sends": 110}),
    Mode(
        "records and more",
        files={"run": harness.records() + b"!"},
        said="followed by 1 unknown bytes",
    ),
    Mode("more records", files={"run": harness.records(121)}, said="n_sends is 121"),
    Mode("6 records", files={"run": harness.records(106)}, said="6 sends were recorded, but 20"),
    counts("2^64 entries", 0, (1 << 64) - 1),
    counts("entries of the sender", 120, 120),
    storm_status("given up", "gave up", state=4),
    storm_status("all incomplete", "the guest counts 4294967295", incomplete=(1 << 32) - 1),
    storm_status("as asked 2^64", "the share", as_asked=(1 << 64) - 1),
    records("all numbers 0", "a send has number 0", "sends", seq=0),
    records("negative S", "send 100 was over", "sends", sent_tsc=5),
    records("D above R", "when send 100", "receipts", handler_tsc=LATE, eoi_tsc=LATE + 1),
    records("handled long ago", "when send 100", "receipts", handler_tsc=np.arange(1, 121)),
    records("handled all at once", "", "receipts", handler_tsc=1),
    records("stamps of 2^64", "a ack_tsc is", "sends", ack_tsc=(1 << 64) - 1),
    records("R of years", "send 101 began -", "sends", ack_tsc=1 << 62),
    # Putting it there, and taking it away.
    Mode("nothing of itself", words=INSTALL, files={"look": b""}, said="is not valid"),
    Mode("two lines of itself", words=REMOVE, files={"look": b"6.12\ndebian\n"}),
    Mode(
        "a kernel that is a path",
        words=INSTALL,
        files={"look": b"../../etc\ndebian\n\nno\nnone\n"},
        said="is not valid",
    ),
    Mode(
        "escapes of itself",
        words=REMOVE,
        files={"look": f"6.12\n{ESCAPES}\n\nno\nnone\n".encode()},
        said="is not valid",
    ),
    Mode(
        "a module that is refused with escapes",
        words=INSTALL,
        codes={"insmod": 1},
        files={"insmod.err": ESCAPES.encode() * 10_000},
        said="did not load the module: \\x1b",
    ),
    Mode(
        "a module that stays",
        words=REMOVE,
        codes={"rmmod": 1},
        files={
            "look": b"6.12.0\ndebian\n\nloaded\nnone\n",
            "rmmod.err": ESCAPES.encode(),
        },
        said="cannot be unloaded: \\x1b",
    ),
)


@contextlib.contextmanager
def answering(mode: Mode) -> Iterator[Path]:
    """A folder in which a fake agent in this mode listens at `agent.sock`."""
    with tempfile.TemporaryDirectory(prefix="agent-", dir="/tmp") as name:
        folder = Path(name)
        told = {"at": mode.at, "actions": mode.actions, "codes": mode.codes, "signs": SIGNS}
        (folder / "mode.json").write_text(json.dumps(told))
        for file, data in {**harness.answers(), **mode.files}.items():
            (folder / file).write_bytes(data)
        (folder / "module.ko").write_bytes(b"no module")
        socket = folder / "agent.sock"
        program = [sys.executable, "-I", "-S", str(harness.HERE / "fake_agent.py")]
        agent = subprocess.Popen([*program, str(socket), name], stderr=subprocess.DEVNULL)
        try:
            until_s = time.monotonic() + 30
            while not socket.exists():
                assert time.monotonic() < until_s, "the fake agent does not start"
                time.sleep(0.01)
            yield folder
        finally:
            agent.kill()
            agent.wait()


def play(mode: Mode) -> Outcome:
    """Run ipitrace against a fake agent in this mode."""
    with answering(mode) as folder:
        module = str(folder / "module.ko")
        words = [module if word == "module.ko" else word for word in mode.words]
        return harness.run_ipitrace(
            [*words, "--vm", "hostile", "--via", f"qga://{folder}/agent.sock"], limit_s=LIMIT_S
        )


@pytest.fixture(scope="module")
def ahead() -> Iterator[Ahead[Mode]]:
    slow_first = sorted([HONEST, *MODES], key=lambda mode: not mode.said.startswith("d"))
    played = Ahead(play, slow_first)
    yield played
    played.close()


def test_an_honest_guest_is_measured(ahead: Ahead[Mode]) -> None:
    outcome = ahead.outcome(HONEST)
    assert_harmless(outcome, frozenset({ExitCode.OK}))
    assert "unicast-running" in outcome.stdout


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_guest_that_misbehaves(ahead: Ahead[Mode], mode: Mode) -> None:
    outcome = ahead.outcome(mode)
    assert_harmless(outcome)
    assert mode.said in outcome.stderr, outcome.stderr
