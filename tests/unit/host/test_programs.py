# SPDX-License-Identifier: Apache-2.0
"""Which folders programs and packages are taken from."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from other_user import NOBODY

import ipitrace
from ipitrace.base.errors import HostError
from ipitrace.base.search_path import others_may_write, safe_entries
from ipitrace.host.programs import clean_environment, find_program, own_command

HOME = str(Path(ipitrace.__file__).parents[1])


def program(folder: Path, name: str = "made-up") -> str:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def private(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def test_a_program_is_found_by_an_absolute_path_only(
    private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = program(private / "bin")
    monkeypatch.chdir(private / "bin")
    for path in ("", ".", ":", "../bin", f":/usr/bin:{os.defpath}:."):
        monkeypatch.setenv("PATH", path)
        with pytest.raises(HostError, match="made-up"):
            find_program("made-up")
    monkeypatch.setenv("PATH", f".:{private / 'bin'}")
    assert find_program("made-up") == there
    assert find_program("/absolute/one") == "/absolute/one"


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o757])
def test_a_folder_that_all_may_write_is_passed_over(
    mode: int, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = program(private / "first"), program(private / "second")
    monkeypatch.setenv("PATH", f"{private / 'first'}:{private / 'second'}")
    assert find_program("made-up") == first
    (private / "first").chmod(mode)
    assert find_program("made-up") == second
    assert clean_environment()["PATH"] == str(private / "second")
    (private / "first").chmod(0o755)
    private.chmod(mode)  # whoever may write the one above puts another in its place
    found = private / "second" / "made-up"
    assert others_may_write(str(found)) == (not mode & 0o1000)


def test_a_link_is_as_good_as_what_it_leads_to(private: Path) -> None:
    program(private / "real")
    (private / "link").symlink_to(private / "real")
    assert not others_may_write(str(private / "link"))
    (private / "real").chmod(0o777)
    assert others_may_write(str(private / "link"))


def test_an_access_control_list_may_let_others_write(private: Path) -> None:
    folder = private / "folder"
    folder.mkdir()
    folder.chmod(0o775)
    assert not others_may_write(str(folder))  # a group of its owner's number, and no list
    # struct posix_acl_xattr_entry in uapi/linux/posix_acl_xattr.h: tag, rights, whose
    entries = [(1, 7, -1), (2, 7, 65534), (4, 5, -1), (0x10, 7, -1), (0x20, 5, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(folder, "system.posix_acl_access", acl)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error.strerror}")
    assert others_may_write(str(folder))


@pytest.mark.parametrize("caller", ["abc", "", "-1", "\u0663"])
def test_an_odd_caller_of_sudo_is_nobody(
    caller: str, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_UID", caller)
    assert not others_may_write(str(private))


def test_what_is_not_there_is_not_trusted(private: Path) -> None:
    assert others_may_write(str(private / "nothing"))


@pytest.mark.live("root")
def test_a_strangers_folder_is_passed_over(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = private / "theirs"
    there = program(folder)
    os.chown(folder, NOBODY, NOBODY)
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(HostError):
        find_program("made-up")
    monkeypatch.setenv("SUDO_UID", str(NOBODY))  # but not that of who called us by sudo
    os.chown(there, NOBODY, NOBODY)
    assert find_program("made-up") == there


@pytest.mark.live("root")
def test_a_shared_group_is_others_and_a_private_one_is_not(
    private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_UID", "1000")
    folder = private / "group"
    folder.mkdir()
    folder.chmod(0o775)
    for user, group, others in ((1000, 1000, False), (1000, 100, True), (0, 0, False)):
        os.chown(folder, user, group)
        assert others_may_write(str(folder)) == others


def test_safe_entries(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(private)
    monkeypatch.setenv("PYTHONPATH", f":lib:{private / 'fine'}")
    for name in ("lib", "fine", "open"):
        (private / name).mkdir()
    (private / "open").chmod(0o777)
    entries = ["", ".", "lib", *(str(private / n) for n in ("lib", "fine", "open"))]
    kept = safe_entries([*entries, str(private), *sys.path])
    assert str(private / "fine") in kept
    assert HOME in kept
    unsafe = {"", ".", "lib", str(private), str(private / "lib"), str(private / "open")}
    assert not unsafe & set(kept)


def test_ipitraces_own_folder_is_kept_wherever_it_is() -> None:
    assert safe_entries([]) == [HOME]


def test_our_own_command_runs_this_very_ipitrace(
    private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (private / "click.py").write_text("raise SystemExit('hostile')\n")
    monkeypatch.chdir(private)
    monkeypatch.setenv("PYTHONPATH", f".:{private}")
    command = own_command("--version")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == f"ipitrace, version {ipitrace.__version__}\n", done.stderr
