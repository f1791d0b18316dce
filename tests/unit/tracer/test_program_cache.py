# SPDX-License-Identifier: Apache-2.0
"""The cache: what was kept comes back, and nothing that anybody else could have put there."""

import errno
import hashlib
import json
import os
import pwd
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from private import private_folder

from ipitrace.tracer import cache
from ipitrace.tracer.cache import cache_state, keep, kept, key_of

VALUE = {"numbers": [1, 2, 3], "text": "x" * 20_000}
KEY = key_of((), "a test")


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for caches of all programs, and a home that is as empty."""
    with private_folder() as made, private_folder() as home:
        monkeypatch.setenv("XDG_CACHE_HOME", str(made))
        monkeypatch.setattr(pwd, "getpwuid", lambda _: SimpleNamespace(pw_dir=str(home)))
        yield made


def entry(base: Path) -> Path:
    return base / "ipitrace" / f"{KEY}.json"


def test_a_value_comes_back_and_the_folder_is_private(base: Path) -> None:
    assert kept(KEY) is None
    assert not list(base.iterdir()), "reading creates nothing"
    keep(KEY, VALUE)
    assert kept(KEY) == VALUE
    assert kept(key_of((), "another")) is None
    assert (base / "ipitrace").stat().st_mode & 0o777 == 0o700
    assert [path.name for path in (base / "ipitrace").iterdir()] == [f"{KEY}.json"]


def test_keys_depend_on_the_values_and_on_the_code(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text("x = 1\n")
    first = key_of((str(code),), "a", ["b"])
    assert first == key_of((str(code),), "a", ["b"])
    assert first != key_of((str(code),), "ab", [""])
    code.write_text("x = 2\n")
    assert first != key_of((str(code),), "a", ["b"])
    absent = (str(tmp_path / "absent.py"),)
    assert key_of(absent, "a") != key_of(absent, "a")


def signed(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda whole: whole[:-1],
    "longer": lambda whole: whole + b"x",
    "a changed byte": lambda whole: whole.replace(b"xxxx", b"xxyx", 1),
    "zeros": lambda whole: bytes(len(whole)),
    "another entry": lambda _: signed(json.dumps({"key": "0" * 64, "value": 1}).encode()),
    "no JSON": lambda _: signed(b"{]"),
    "no object": lambda _: signed(b"[1]"),
    "nested": lambda _: signed(b"[" * 100_000),
    "not UTF-8": lambda _: signed(b"\xff\xfe"),
    "too large": lambda _: signed(json.dumps({"key": KEY, "value": ["x" * 10_000] * 500}).encode()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_absent_and_can_be_replaced(base: Path, damage: str) -> None:
    keep(KEY, VALUE)
    entry(base).write_bytes(DAMAGES[damage](entry(base).read_bytes()))
    assert kept(KEY) is None
    keep(KEY, VALUE)
    assert kept(KEY) == VALUE


def to_link(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


def to_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_strangers(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give files away")
    os.chown(path, 65534, 65534)


ODD: dict[str, Callable[[Path], object]] = {
    "a link": to_link,
    "a FIFO": to_fifo,
    "a folder": to_folder,
    "of a stranger": to_strangers,
    "with a second name": lambda path: os.link(path, path.with_suffix(".second")),
    "writable by the group": lambda path: path.chmod(0o664),
    "writable by all": lambda path: path.chmod(0o646),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_entry_that_others_could_have_made_is_not_read(base: Path, odd: str) -> None:
    keep(KEY, VALUE)
    ODD[odd](entry(base))
    assert kept(KEY) is None
    keep(KEY, VALUE)  # raises nothing
    assert kept(KEY) == (None if odd == "a folder" else VALUE)


ODD_FOLDERS: dict[str, Callable[[Path], object]] = {
    "a link": to_link,
    "of a stranger": to_strangers,
    "readable by all": lambda path: path.chmod(0o755),
    "writable by the group": lambda path: path.chmod(0o770),
}


@pytest.mark.parametrize("odd", ODD_FOLDERS)
def test_a_folder_that_others_could_have_made_is_not_used(base: Path, odd: str) -> None:
    keep(KEY, VALUE)
    folder = base / "ipitrace"
    ODD_FOLDERS[odd](folder)
    before = entry(base).read_bytes()
    keep(KEY, "another value")
    assert kept(KEY) is None
    assert entry(base).read_bytes() == before, "nothing was written"
    assert cache_state().startswith("not cached: ")


@pytest.mark.parametrize("mode", [0o775, 0o707, 0o1777])
def test_nor_one_below_a_folder_that_others_may_write_to(base: Path, mode: int) -> None:
    keep(KEY, VALUE)
    base.chmod(mode)
    assert kept(KEY) is None
    assert cache_state() == f"not cached: another user may write to {base}, or owns it"


def test_a_foreign_xdg_cache_home_is_not_used(base: Path) -> None:
    """As under `sudo --preserve-env`: the home of the effective user is used instead."""
    to_strangers(base)
    keep(KEY, VALUE)
    assert not list(base.iterdir())
    home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    assert (home / ".cache" / "ipitrace" / f"{KEY}.json").exists()
    assert kept(KEY) == VALUE
    assert cache_state() == f"cached in {home}/.cache/ipitrace"


@pytest.mark.parametrize("where", ["", "relative", "/nonexistent", "/\0", "/dev/null"])
def test_an_unusable_xdg_cache_home(
    base: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache.os, "environ", {"XDG_CACHE_HOME": where})
    keep(KEY, VALUE)
    assert not list(base.iterdir())
    assert kept(KEY) == (None if where == "/dev/null" else VALUE)


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_user(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for found in (no_user, lambda _: SimpleNamespace(pw_dir="/nonexistent")):
        monkeypatch.setattr(pwd, "getpwuid", found)
        keep(KEY, VALUE)
        assert kept(KEY) is None
        assert cache_state().startswith("not cached")


def test_a_full_disk_leaves_nothing_behind(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(KEY, VALUE)

    def full(fd: int, data: bytes) -> None:
        os.write(fd, data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache, "write_all", full)
    keep(KEY, "another value")
    assert kept(KEY) == VALUE
    assert len(list((base / "ipitrace").iterdir())) == 1


def test_the_entries_used_last_stay(base: Path) -> None:
    keys = [key_of((), n) for n in range(28)]
    folder = base / "ipitrace"
    for age, key in enumerate(keys[:24]):
        keep(key, age)
        os.utime(folder / f"{key}.json", (age, age))
    assert kept(keys[0]) == 0  # the oldest is used
    (folder / "notes.txt").touch()
    (folder / f".part-{'0' * 16}").touch()
    (folder / f".part-{'1' * 16}").touch()
    os.utime(folder / f".part-{'1' * 16}", (0, time.time() - 2 * 3600))
    for key in keys[24:]:
        keep(key, "new")
    assert [key for key in keys if kept(key) is None] == keys[1:5]
    left = {path.name for path in folder.iterdir()}
    assert {"notes.txt", f".part-{'0' * 16}"} <= left
    assert f".part-{'1' * 16}" not in left


def test_writers_and_readers_at_once(base: Path) -> None:
    keep(KEY, VALUE)
    wrong: list[object] = []

    def work() -> None:
        for _ in range(50):
            keep(KEY, VALUE)
            found = kept(KEY)
            if found != VALUE:
                wrong.append(found)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(list((base / "ipitrace").iterdir())) == 1
