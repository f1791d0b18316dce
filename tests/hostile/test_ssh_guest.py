# SPDX-License-Identifier: Apache-2.0
"""Hostile guests over real ssh: a real sshd, or something on its port that is none.

Whatever it plays, ipitrace ends within its own deadlines, with one sentence and the right exit
code, in little memory, without a file that grows, and with nothing left behind.
"""

import contextlib
import json
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from harness import (
    BAD_ENDS,
    HERE,
    RUN,
    SIGNS,
    STATUS,
    Ahead,
    Outcome,
    answers,
    assert_harmless,
    records,
    run_ipitrace,
)
from sshd import NAME, Server, end_guests, ssh_on_path, sshd

from ipitrace.abi.storm import FILE
from ipitrace.base.errors import ExitCode

pytestmark = pytest.mark.live("root")

VM: Final = ("--vm", "guest1")
ASK: Final = ("guest", "status", *VM)
INSTALL: Final = ("guest", "install", *VM)
COUNT_SENDERS: Final = ("guest", "senders", *VM, "--duration", "1")
SENDERS_SAID: Final = (HERE.parent / "data" / "fuzz" / "senders" / "usual").read_text()
STORM: Final = (*RUN, *VM)
LIMIT_S: Final = 150.0
"""Far above what the deadlines of a connection and of the few commands sum up to."""

REFUSED: Final = frozenset({ExitCode.ENVIRONMENT})
WORTHLESS: Final = frozenset({ExitCode.ENVIRONMENT, ExitCode.UNTRUSTWORTHY})
FINE: Final = frozenset({ExitCode.OK})
EITHER: Final = FINE | BAD_ENDS
ESCAPES: Final = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\r\x7f"

Spoil = Callable[[socket.socket, int], None]
"""Serves one connection, in place of sshd or (by its port) before it."""


@dataclass(frozen=True)
class Mode:
    """One way to misbehave.

    Attributes:
        at: which command is spoilt, see harness.SIGNS; `any` for all.
        actions: what is played then, see ssh_guest.ACTIONS.
        mute: the guest does not tell its process id first.
        sshd: more lines of its configuration.
        spoil: what stands on the port instead of sshd.
        words: of the command line.
        codes: how ipitrace may end.
        says: part of its message.
        hangs: it takes one of ipitrace's deadlines.
    """

    name: str
    at: str = ""
    actions: Sequence[tuple[str, Any]] = ()
    mute: bool = False
    sshd: Sequence[str] = ()
    spoil: Spoil | None = None
    words: Sequence[str] = ASK
    codes: frozenset[ExitCode] = REFUSED
    says: str = ""
    hangs: bool = False


def said(name: str, at: str, text: str, **more: Any) -> Mode:
    """A mode in which a command prints something odd and ends well."""
    return Mode(name, at, [("out", text)], **more)


def status(**changes: object) -> str:
    return json.dumps({**STATUS, **changes})


def spoilt_header(**fields: int) -> str:
    """Honest records but for fields of their header, as text that ssh_guest.py writes as bytes."""
    whole = bytearray(records())
    for field, value in fields.items():
        dtype, offset = FILE.fields[field][:2] if FILE.fields else (None, 0)
        assert dtype is not None
        whole[offset : offset + dtype.itemsize] = value.to_bytes(dtype.itemsize, "little")
    return whole.decode("utf-8", "surrogateescape")


def record_text(cut: int | None = None) -> str:
    return records()[:cut].decode("utf-8", "surrogateescape")


# What is no sshd.


def silent(connection: socket.socket, _port: int) -> None:
    connection.recv(1 << 16)
    time.sleep(LIMIT_S)


def sending(data: bytes, *, pause_s: float = 0.0, first: bytes = b"") -> Spoil:
    """Sends the same for ever."""

    def send(connection: socket.socket, _port: int) -> None:
        connection.sendall(first)
        while True:
            connection.sendall(data)
            time.sleep(pause_s)

    return send


def greeting(data: bytes) -> Spoil:
    """Sends this, then nothing."""

    def greet(connection: socket.socket, port: int) -> None:
        connection.sendall(data)
        silent(connection, port)

    return greet


def closing(connection: socket.socket, _port: int) -> None:
    connection.close()


def after(n_bytes: int, then: str) -> Spoil:
    """The real sshd until it has sent so many bytes: then `cut`, `freeze`, or `garble`."""

    def serve(connection: socket.socket, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as server:

            def upwards() -> None:
                with contextlib.suppress(OSError):
                    while data := connection.recv(1 << 14):
                        server.sendall(data)

            threading.Thread(target=upwards, daemon=True).start()
            left = n_bytes
            while data := server.recv(min(1 << 14, left) if then != "garble" else 1 << 14):
                if then == "garble" and len(data) > left:
                    data = data[:left] + bytes(b ^ 0x55 for b in data[left:])
                connection.sendall(data)
                left = max(left - len(data), 0)
                if not left and then == "cut":
                    return
                if not left and then == "freeze":
                    time.sleep(LIMIT_S)

    return serve


FLOODS: Final = [
    Mode(
        f"{at}-floods-{name}",
        at,
        [("deaf", None), ("flood", streams)],
        words=words,
        says="sent more than",
        codes=WORTHLESS,
    )
    for at, words in (("uid", ASK), ("status", ASK), ("cpuinfo", STORM), ("run", STORM))
    for name, streams in (("stdout", [1]), ("stderr", [2]), ("both", [1, 2]))
]

USERS: Final = [
    said(f"user-{name}", "uid", text, says="instead of its user")
    for name, text in {
        "with-command": "0; rm -rf /\n",
        "of-other-digits": "٣\n",
        "below-zero": "-1\n",
        "of-5000-digits": "9" * 5000 + "\n",
        "of-escapes": ESCAPES,
        "of-nothing": "",
        "of-spaces": " \t \n",
        "of-binary": "\0\1\2\udcff\udcfe" * 100,
        "after-welcome": "Welcome to guest1!\n0\n",
        "plus": "+0\n",
    }.items()
]

ENDS: Final = [
    Mode(f"status-ends-{name}", "status", [action], says=says)
    for name, action, says in (
        ("255", ("exit", 255), "connection was lost"),
        ("126", ("exit", 126), "cannot be run"),
        ("127", ("exit", 127), "cannot be run"),
        ("1", ("exit", 1), "status 1"),
        ("by-sigkill", ("signal", 9), ""),
        ("by-sigterm", ("signal", 15), ""),
        ("by-sigsegv", ("signal", 11), ""),
        ("with-connection", ("drop", None), ""),
    )
]

STATUSES: Final = [
    said(f"status-{name}", "status", text, codes=codes)
    for name, text, codes in (
        ("of-10-billion-cpus", status(n_cpus=10**10), REFUSED),
        ("of-minus-cpus", status(n_cpus=-5), REFUSED),
        ("of-million-online", status(online=list(range(10**6))), REFUSED),
        ("with-5000-digits", status().replace("2000000", "9" * 5000), REFUSED),
        ("nested-100000-deep", "[" * 100_000, REFUSED),
        ("cut-off", status()[:50], REFUSED),
        ("of-infinity", status().replace("2000000", "1e999"), REFUSED),
        ("of-wrong-types", status(online="0-1", module=[]), REFUSED),
        ("a-list", "[]", REFUSED),
        ("empty", "", REFUSED),
        ("with-escapes", status(kernel=ESCAPES, unsupported={ESCAPES: ESCAPES}), EITHER),
        ("with-raw-escapes", status(kernel="K").replace("K", ESCAPES), REFUSED),
        ("with-surrogates", status().replace("6.12.0", r"\ud800"), EITHER),
        ("with-long-texts", status(kernel="k" * 10**6), EITHER),
        ("of-another-version", status(abi_version=10**9), REFUSED),
        ("of-15-mib", status(unsupported={"x" * 15 * (1 << 20): "y"}), REFUSED),
    )
]

WORDS: Final = [
    Mode("status-complains-in-escapes", "status", [("err", ESCAPES), ("exit", 1)]),
    Mode("status-complains-long", "status", [("err", "e" * 200_000), ("exit", 1)]),
    Mode(
        "storm-complains-in-escapes",
        "run",
        [("err", ESCAPES), ("exit", 4)],
        words=STORM,
        codes=frozenset({ExitCode.UNTRUSTWORTHY}),
    ),
    Mode("helper-floods", "helper", [("flood", [1])], says="sent more than"),
    said("helper-of-1-mib", "helper", "/" + "x" * (1 << 20) + "\n"),
    said("helper-of-escapes", "helper", f"/{ESCAPES}\n"),
    said("starts-by-printing", "any", "Welcome!\n", mute=True, says="before a command"),
    Mode(
        "starts-by-complaining",
        "any",
        [("err", f"{ESCAPES}\n")],
        mute=True,
        says="before a command",
    ),
    Mode("process-of-5000-digits", "any", [("err", "9" * 5000)], mute=True),
    Mode("process-of-other-digits", "any", [("err", "٣\n")], mute=True),
    Mode("login-shell-ends", "any", [("exit", 1)], mute=True, says="login ended"),
]

STORMS: Final = [
    said(f"records-{name}", "run", text, words=STORM, codes=codes)
    for name, text, codes in (
        ("none", "", WORTHLESS),
        ("of-text", f"Welcome!{ESCAPES}", WORTHLESS),
        ("after-text", "Welcome!\n" + record_text(), WORTHLESS),
        ("cut-off", record_text(1000), WORTHLESS),
        ("of-2-to-the-63-sends", spoilt_header(n_sends=1 << 63), WORTHLESS),
        ("of-4-billion-cpus", spoilt_header(n_vcpus=(1 << 32) - 1), WORTHLESS),
        ("with-header-of-4-gib", spoilt_header(header_bytes=(1 << 32) - 1), WORTHLESS),
        ("of-another-version", spoilt_header(abi_version=99), WORTHLESS),
        ("of-1000-times-as-many", record_text() * 1000, WORTHLESS),
    )
] + [
    Mode(
        "records-and-the-connection-end",
        "run",
        [("out", record_text(1000)), ("drop", None)],
        words=STORM,
        codes=WORTHLESS,
    ),
    said("cpu-of-5000-digits", "cpuinfo", f"processor : {'9' * 5000}\n", words=STORM),
    said("cpu-of-a-billion", "cpuinfo", "processor : 1000000000\napicid : -7\n", words=STORM),
    said("cpu-of-words", "cpuinfo", f"processor : {ESCAPES}\n", words=STORM),
    said("cpuinfo-of-15-mib", "cpuinfo", "processor : 0\n" * (1 << 20), words=STORM, codes=EITHER),
]

INSTALLS: Final = [
    Mode("look-floods", "look", [("flood", [1])], words=INSTALL, says="sent more than"),
    said("look-of-nothing", "look", "", words=INSTALL),
    said("look-of-one-line", "look", "6.12\n", words=INSTALL),
    said("look-of-escapes", "look", f"{ESCAPES}\n" * 5, words=INSTALL),
]

SENDERS: Final = [
    Mode("senders-flood", "senders", [("flood", [1])], words=COUNT_SENDERS, says="sent more than"),
    Mode(
        "senders-ignore-signals", "senders", [("deaf", None), ("sleep", None)], words=COUNT_SENDERS
    ),
    Mode(
        "senders-complain-in-escapes",
        "senders",
        [("err", ESCAPES), ("exit", 1)],
        words=COUNT_SENDERS,
        says="cannot count its senders",
    ),
    *(
        said(f"senders-{name}", "senders", text, words=COUNT_SENDERS, says="is not valid")
        for name, text in {
            "of-nothing": "",
            "of-escapes": SENDERS_SAID.replace("generic_exec_single", ESCAPES),
            "cut-off": SENDERS_SAID[:-10],
            "of-5000-digits": SENDERS_SAID.replace("hitcount: ", f"hitcount: {'9' * 5000}"),
            "of-3-mib-of-a-word": SENDERS_SAID.replace("generic_exec_single", "x" * (1 << 20)),
        }.items()
    ),
    said("senders-are-honest", "senders", SENDERS_SAID, words=COUNT_SENDERS, codes=FINE),
]

HANGS: Final = [
    Mode("silent-from-the-start", "any", [("sleep", None)], mute=True, hangs=True),
    Mode("user-without-end", "uid", [("out", "0"), ("sleep", None)], hangs=True),
    Mode(
        "process-one-and-silence", "uid", [("err", "1\n"), ("sleep", None)], mute=True, hangs=True
    ),
    Mode("status-then-silence", "status", [("out", status()), ("sleep", None)], hangs=True),
    Mode("status-drips", "status", [("deaf", None), ("drip", status())], hangs=True),
    Mode("status-closes-and-stays", "status", [("close", [0, 1, 2]), ("sleep", None)], hangs=True),
    Mode("status-leaves-a-child", "status", [("out", status()), ("child", None)], hangs=True),
    Mode("status-ignores-signals", "status", [("deaf", None), ("sleep", None)], hangs=True),
]

NO_SSHD: Final = [
    Mode("tcp-silent", spoil=silent, hangs=True),
    Mode("tcp-closes", spoil=closing),
    Mode("tcp-floods-lines", spoil=sending(b"x" * 200 + b"\r\n")),
    Mode("tcp-floods-one-line", spoil=sending(b"x" * (1 << 16))),
    Mode("tcp-floods-escapes", spoil=sending(ESCAPES.encode() + b"\r\n")),
    Mode("tcp-drips", spoil=sending(b"S", pause_s=1), hangs=True),
    Mode("tcp-drips-lines", spoil=sending(b"x\r\n", pause_s=0.2), hangs=True),
    Mode("tcp-of-version-1", spoil=greeting(b"SSH-1.0-old\r\n")),
    Mode("tcp-version-of-escapes", spoil=greeting(f"SSH-2.0-{ESCAPES}\r\n".encode()), hangs=True),
    Mode("tcp-version-then-silence", spoil=greeting(b"SSH-2.0-x\r\n"), hangs=True),
    Mode("tcp-version-then-flood", spoil=sending(b"A" * (1 << 16), first=b"SSH-2.0-x\r\n")),
    Mode("tcp-binary", spoil=sending(bytes(range(256)) * 16)),
    *(Mode(f"tcp-cut-after-{n}", spoil=after(n, "cut")) for n in (10, 500, 2000, 3200)),
    *(Mode(f"tcp-frozen-after-{n}", spoil=after(n, "freeze"), hangs=True) for n in (500, 3200)),
    *(Mode(f"tcp-garbled-after-{n}", spoil=after(n, "garble")) for n in (100, 1500, 3200)),
]

SETTINGS: Final = [
    Mode("lets-nobody-in", sshd=["AllowUsers nobody"], says="Permission denied"),
    Mode("has-no-sessions", sshd=["MaxSessions 0"]),
    Mode("runs-something-else", sshd=["ForceCommand /bin/false"], says="login ended"),
    Mode("has-a-banner-of-escapes", sshd=["Banner {folder}/banner"], codes=FINE),
]

MODES: Final = [
    *HANGS,
    *(mode for mode in NO_SSHD if mode.hangs),
    *(mode for mode in NO_SSHD if not mode.hangs),
    *FLOODS,
    *USERS,
    *ENDS,
    *STATUSES,
    *WORDS,
    *STORMS,
    *INSTALLS,
    *SENDERS,
    *SETTINGS,
    Mode("is-honest", codes=FINE),
    Mode("is-honest-in-a-storm", words=STORM, codes=FINE),
]


@contextlib.contextmanager
def standing_before(server: Server, spoil: Spoil | None) -> Iterator[int]:
    """The port to connect to: the server's own, or that of what stands before it."""
    if spoil is None:
        yield server.port
        return
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=one, args=(connection,), daemon=True).start()

        def one(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                spoil(connection, server.port)

        threading.Thread(target=serve, daemon=True).start()
        yield int(listener.getsockname()[1])


@contextlib.contextmanager
def guest(mode: Mode) -> Iterator[tuple[Server, int]]:
    """The server of a mode, and the port to connect to."""
    with tempfile.TemporaryDirectory(prefix="guest-", dir="/tmp") as name:
        folder = Path(name)
        for what, content in answers().items():
            (folder / what).write_bytes(content)
        (folder / "banner").write_text(f"{ESCAPES}\n" * 1000)
        played = {"at": mode.at, "actions": list(mode.actions), "mute": mode.mute, "signs": SIGNS}
        (folder / "mode.json").write_text(json.dumps(played))
        plays = f"ForceCommand {sys.executable} -I -S {HERE / 'ssh_guest.py'} {folder}"
        settings = [line.format(folder=folder) for line in mode.sshd]
        with sshd(folder, *settings, plays) as server, standing_before(server, mode.spoil) as port:
            yield server, port
        end_guests(folder)


def play(mode: Mode) -> Outcome:
    with guest(mode) as (server, port):
        path = ssh_on_path(server, port)
        words = [*mode.words, "--via", f"ssh://{NAME}"]
        return run_ipitrace(words, environment={"PATH": path}, limit_s=LIMIT_S)


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[Ahead[Mode]]:
    wanted = {
        id(item.callspec.params["mode"])
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.module is request.module
        and hasattr(item, "callspec")
        and "mode" in item.callspec.params
    }
    ahead = Ahead(play, [mode for mode in MODES if id(mode) in wanted])
    yield ahead
    ahead.close()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_it_ends_well(mode: Mode, outcomes: Ahead[Mode]) -> None:
    outcome = outcomes.outcome(mode)
    assert_harmless(outcome, mode.codes)
    assert mode.says in outcome.stderr
