# SPDX-License-Identifier: Apache-2.0
"""script/install where it has to refuse, run for real; of the copy's set-up we see that it came.

That it installs is shown by tests/live/test_install.py.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
NOBODY = 65534
REACHED = 42  # the set-up's exit code: nothing was refused before


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A checkout of the scripts, in a folder of its own."""
    top = tmp_path / "above" / "checkout"
    top.mkdir(parents=True)
    shutil.copytree(CHECKOUT / "script", top / "script")
    shutil.copy(CHECKOUT / "Makefile", top)
    (top / "script/setup").write_text(f"#!/bin/sh\nexit {REACHED}\n")
    return top


def install(top: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    given = {"PATH": os.environ["PATH"], "PREFIX": str(top.parents[1] / "prefix")} | environment
    return subprocess.run(
        ["sh", top / "script/install", *words],
        env=given,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_checkout_of_ones_own_is_taken(top: Path) -> None:
    (top / ".venv").mkdir()
    (top / ".venv/python").symlink_to("/usr/bin/python3")
    assert install(top).returncode == REACHED


def _whole(top: Path) -> Path:
    top.chmod(0o777)
    return top


def _file(top: Path) -> Path:
    file = top / "script/common.sh"
    file.chmod(0o666)
    return file


def _sticky(top: Path) -> Path:
    (top / "script").chmod(0o1777)
    return top / "script"


def _above(top: Path) -> Path:
    top.parent.chmod(0o777)
    return top.parent


def _link(top: Path) -> Path:
    elsewhere = top.parents[1] / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    elsewhere.chmod(0o777)
    (top / "link").symlink_to("../../elsewhere/file")
    return elsewhere


@pytest.mark.parametrize("opened", [_whole, _file, _sticky, _above, _link])
def test_a_checkout_that_others_may_write_is_refused(
    top: Path, opened: Callable[[Path], Path]
) -> None:
    place = opened(top)
    done = install(top)
    assert done.returncode == 3, done.stderr
    assert f"Others may write {place}, so they could change what is installed" in done.stderr
    assert "chmod go-w" in done.stderr
    assert not (top.parents[1] / "prefix").exists()


def test_a_link_to_the_checkout_is_looked_through(top: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(top)
    assert install(tmp_path / "link", PREFIX=str(tmp_path / "prefix")).returncode == REACHED
    _above(top)
    done = install(tmp_path / "link", PREFIX=str(tmp_path / "prefix"))
    assert (done.returncode, str(top.parent) in done.stderr) == (3, True)


@pytest.mark.live("root")
def test_anothers_checkout_is_taken_from_who_called_sudo_alone(top: Path) -> None:
    os.chown(top / "script/common.sh", NOBODY, NOBODY)
    assert install(top).returncode == 3
    assert install(top, SUDO_UID="1234").returncode == 3
    assert install(top, SUDO_UID=str(NOBODY)).returncode == REACHED
    (top / "script/common.sh").chmod(0o664)  # a group of that user's own
    assert install(top, SUDO_UID=str(NOBODY)).returncode == REACHED


@pytest.mark.live("root")
def test_who_called_sudo_may_not_write_the_place(top: Path, tmp_path: Path) -> None:
    """What root installs is for everyone."""
    place = tmp_path / "home"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    done = install(top, PREFIX=str(place / "prefix"), SUDO_UID=str(NOBODY))
    assert done.returncode == 3
    assert f"Others may write {place}, so" in done.stderr
    assert "Choose another PREFIX" in done.stderr
    assert list(place.iterdir()) == []


def test_a_place_that_others_may_write_is_refused(top: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prefix/lib"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    done = install(top)
    assert (done.returncode, f"Others may write {folder}, so" in done.stderr) == (3, True)
    # A package's staging folder is not where it runs.
    assert install(top, PREFIX="/usr/local", DESTDIR=str(folder)).returncode == REACHED


@pytest.mark.parametrize("name", ["bin/ipitrace", "lib/ipitrace"])
@pytest.mark.parametrize("words", [(), ("--remove",)])
def test_what_it_did_not_write_is_left(
    top: Path, tmp_path: Path, name: str, words: tuple[str, ...]
) -> None:
    place = tmp_path / "prefix" / name
    place.parent.mkdir(parents=True)
    if name.startswith("lib"):
        place.mkdir()
    else:
        place.write_text("#!/bin/sh\n")
    done = install(top, *words)
    assert done.returncode == 3
    assert f"{place} exists, and make install did not write it." in done.stderr
    assert place.exists()


def test_nothing_to_remove(top: Path, tmp_path: Path) -> None:
    done = install(top, "--remove")
    assert done.returncode == 0
    assert done.stdout == f"There is no ipitrace in {tmp_path}/prefix.\n"


@pytest.mark.parametrize("prefix", ["here", "/with space", "/a'b", "/a\nb", "/$(id)"])
def test_an_odd_prefix_is_a_usage_error(top: Path, prefix: str) -> None:
    done = install(top, PREFIX=prefix)
    assert done.returncode == 2
    assert "give an absolute path" in done.stderr
