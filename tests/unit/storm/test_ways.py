# SPDX-License-Identifier: Apache-2.0
"""`--vm` and `--via` as a person may write them."""

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from ipitrace.errors import HostError, UsageError
from ipitrace.guests import check_names
from ipitrace.storm.shell import run_here
from ipitrace.storm.ssh import Destination, open_ssh
from ipitrace.storm.via import open_shell


@pytest.mark.parametrize(
    ("url", "host", "user", "port"),
    [
        ("ssh://guest1", "guest1", None, None),
        ("ssh://root@guest1", "guest1", "root", None),
        ("ssh://me@127.0.0.1:2222/", "127.0.0.1", "me", 2222),
        ("ssh://[fe80::1]:22", "fe80::1", None, 22),
    ],
)
def test_ssh_urls(url: str, host: str, user: str | None, port: int | None) -> None:
    assert Destination.parse(urlsplit(url)) == Destination(host, user, port)


@pytest.mark.parametrize(
    "url",
    [
        "ssh://",
        "ssh://-oProxyCommand=reboot",
        "ssh://-l@host",
        "ssh://host:99999",
        "ssh://host/path",
        "ssh://ho st",
        "ssh://host?x",
        "ssh://a$(b)",
    ],
)
def test_ssh_urls_that_name_no_guest(url: str) -> None:
    with pytest.raises(UsageError):
        Destination.parse(urlsplit(url))


def test_no_password_is_taken_and_none_is_repeated() -> None:
    with pytest.raises(UsageError, match="password") as raised:
        open_shell("ssh://me:secret@host")
    assert "secret" not in raised.value.message + raised.value.hint


@pytest.mark.parametrize(
    "via", ["", "telnet://x", "qga://", "qga://host/path", "qga+libvirt://", "http://[", "locale"]
)
def test_what_is_no_way_says_which_there_are(via: str) -> None:
    with pytest.raises(UsageError) as raised:
        open_shell(via)
    assert "qga:///path/to/socket" in raised.value.hint


@pytest.mark.parametrize(
    ("vm", "via"),
    [("micro", "local"), ("micro", "ssh://x"), ("micro:3", "ssh://x"), ("local", "ssh://x")],
)
def test_guests_and_ways_that_do_not_go_together(vm: str, via: str | None) -> None:
    with pytest.raises(UsageError):
        check_names(vm, via)


def test_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, but does not listen
        to = Destination("127.0.0.1", None, held.getsockname()[1])
        with pytest.raises(HostError, match="Connection refused") as raised, open_ssh(to):
            raise AssertionError
    assert "sshd" in raised.value.hint


def test_an_agent_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot be connected"):
        open_shell(f"qga://{tmp_path}/none").__enter__()


def test_a_program_that_takes_too_long_is_ended() -> None:
    noticed: list[str] = []
    unlike_others = f"sleep {1000 + os.getpid()}"
    command = ["sh", "-c", f"echo started >&2; {unlike_others}"]
    with pytest.raises(HostError, match="did not end"):
        run_here(command, stdin=b"", timeout_s=2, tick=lambda: None, give_up=noticed.append)
    assert noticed == ["started"]
    running = (found.info["cmdline"] for found in psutil.process_iter(["cmdline"]))
    assert unlike_others.split() not in running


def test_a_programs_streams_and_status() -> None:
    done = run_here(
        ["sh", "-c", "cat; echo ' why ' >&2; exit 7"],
        stdin=b"\0binary\xff",
        timeout_s=30,
        tick=lambda: None,
    )
    assert (done.status, done.stdout, done.stderr) == (7, b"\0binary\xff", "why")


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(HostError, match="cannot be started"):
        run_here(["no-such-program"], stdin=b"", timeout_s=1, tick=lambda: None)
