# SPDX-License-Identifier: Apache-2.0
"""tests/other_user.py: a checkout in a closed folder is open to another user, and to no one else.

The folders are made for these tests; the other tests use the real checkout.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from other_user import NOBODY, open_folder, reachable

pytestmark = pytest.mark.live("root")

AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


def said(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, cwd=cwd
    )
    return done.stdout + done.stderr


@pytest.fixture
def above() -> Iterator[Path]:
    """A folder for home directories. Pytest's own are closed, which would close all of them."""
    with open_folder() as folder:
        yield folder


def made(home: Path) -> Path:
    """A checkout in a home directory, with all kinds of entries."""
    checkout = home / "src" / "checkout"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").write_text("#!/bin/sh\nid -u\n")
    (checkout / ".venv" / "bin" / "python").chmod(0o755)
    (checkout / "a file").write_text("text")
    (checkout / "link").symlink_to("a file")
    (home / "secret").write_text("precious")
    return checkout


@pytest.mark.parametrize("closed", ["home", "home/src", "home/src/checkout"])
@pytest.mark.parametrize("mode", [0o700, 0o750])
def test_a_closed_checkout_is_reachable(above: Path, closed: str, mode: int) -> None:
    checkout = made(above / "home")
    (above / closed).chmod(mode)
    program = checkout / ".venv" / "bin" / "python"
    assert "Permission denied" in said(*AS_NOBODY, program)
    through = (*reachable(checkout), *AS_NOBODY)
    assert said(*through, program) == f"{NOBODY}\n"
    assert said(*through, "cat", checkout / "link") == "text"
    assert "Permission denied" in said(*through, "touch", checkout / "new")


def test_only_the_checkout_is_opened_and_only_for_that_command(above: Path) -> None:
    checkout = made(above / "home")
    (above / "home").chmod(0o700)
    mounts = Path("/proc/self/mounts").read_text()
    through = (*reachable(checkout), *AS_NOBODY)
    assert "No such file" in said(*through, "cat", above / "home" / "secret")
    assert Path("/proc/self/mounts").read_text() == mounts
    assert "Permission denied" in said(*AS_NOBODY, "ls", checkout)
    assert sorted(path.name for path in checkout.iterdir()) == [".venv", "a file", "link"]


def test_the_command_keeps_its_working_directory(above: Path) -> None:
    checkout = made(above / "home")
    (above / "home").chmod(0o700)
    through = reachable(checkout)
    for cwd in (checkout, above, above / "home"):
        assert said(*through, "pwd", cwd=cwd) == f"{cwd}\n"


def test_an_open_checkout_needs_no_mounts(above: Path) -> None:
    checkout = made(above / "home")
    assert reachable(checkout) == ()
    assert said(*AS_NOBODY, checkout / ".venv" / "bin" / "python") == f"{NOBODY}\n"


def test_an_open_folder_is_open_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = os.umask(0o077)
    try:
        with open_folder(0o777) as folder:
            assert said(*AS_NOBODY, "touch", folder / "theirs") == ""
        assert not folder.exists()
    finally:
        os.umask(before)
