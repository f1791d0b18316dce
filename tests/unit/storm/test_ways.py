# SPDX-License-Identifier: Apache-2.0
"""`--vm` and `--via` as a person may write them."""

import socket
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ipitrace.base.errors import HostError, UsageError
from ipitrace.measure.guests import check_names, open_way
from ipitrace.storm.transport.registry import open_shell
from ipitrace.storm.transport.ssh import Destination, _place, open_ssh


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
        "ssh://a;reboot",
        "ssh://a|b@host",
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
    "via",
    [
        *("", "telnet://x", "qga://", "qga://host/path", "qga+libvirt://", "http://[", "locale"),
        # urlsplit() or connect(2) would make the name of another guest of these.
        *("qga:///run/vm#1", "qga:///run/vm?1", "qga+libvirt://vm#1", "qga+libvirt://vm?1"),
        *(
            "qga:///run/vm%001",
            "qga:///run/v\nm",
            "qga:///\0",
            "local#",
            "local?",
            " local",
            "lo\tcal",
        ),
    ],
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


def test_the_built_in_guest_takes_no_module() -> None:
    with pytest.raises(UsageError, match="has no kernel that could load a module"):
        open_way("micro", None)


def test_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, but does not listen
        to = Destination("127.0.0.1", None, held.getsockname()[1])
        with pytest.raises(HostError, match="Connection refused") as raised, open_ssh(to):
            raise AssertionError
    assert "sshd" in raised.value.hint


def test_an_agent_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"Connecting to .* failed"):
        open_shell(f"qga://{tmp_path}/none").__enter__()


def test_the_socket_lies_where_nobody_can_put_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        monkeypatch.setattr(tempfile, "tempdir", place)
        assert _place() == place
        Path(place).chmod(0o777)
        assert _place() == "/tmp"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    assert _place() == "/tmp"
