# SPDX-License-Identifier: Apache-2.0
"""script/install where it has to refuse and where it is killed, run for real.

Of the copy's set-up we see that it came, or it is played, as is the Python that builds what is
installed. That the real one installs is shown by tests/live/test_install.py.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from other_user import NOBODY

CHECKOUT = Path(__file__).parents[2]
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
    assert f"{place} is there, and make install did not write it." in done.stderr
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


# Interruptions.

PLAYED_PYTHON = """#!/bin/sh
case $* in
*_base_executable*) echo "$0" ;;
*get_path*) echo "$(dirname "$0")/site" ;;
*'-m venv'*)
	for folder; do :; done
	/usr/bin/mkdir "$folder/bin"
	cp "$0" "$folder/bin/python3" ;;
esac
"""
# Kills the script and all of its processes before it does its Nth change.
COUNTING = """#!/bin/sh
n=$(($(cat {count}) + 1))
echo $n >{count}
[ $n -ne "${{KILL_AT-0}}" ] || kill -KILL 0
exec {program} "$@"
"""


class Killed:
    """Runs that are killed at one change after the other; the folder of PREFIX is new."""

    def __init__(self, top: Path, folder: Path) -> None:
        self.top, self.place = top, folder / "place"
        self._count = folder / "count"
        self._bin = folder / "bin"
        self._bin.mkdir()
        self.place.mkdir()
        for name in ("mkdir", "mv", "rm", "rmdir"):
            program = self._bin / name
            program.write_text(COUNTING.format(count=self._count, program=shutil.which(name)))
            program.chmod(0o755)
        (top / "script/setup").write_text("#!/bin/sh\n")
        python = top / ".venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(PLAYED_PYTHON)
        python.chmod(0o755)
        self._environment = {
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "PREFIX": str(self.place / "made" / "prefix"),
            "TMPDIR": str(folder),
        }

    def run(self, *words: str, kill_at: int = 0) -> int:
        self._count.write_text("0")
        done = subprocess.run(
            ["sh", self.top / "script/install", *words],
            env=self._environment | {"KILL_AT": str(kill_at)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )
        assert done.returncode in {0, -signal.SIGKILL}, done.stderr
        return done.returncode

    def here(self) -> set[str]:
        """What is there, but for folders that lead to the record."""
        found = {str(path.relative_to(self.place)) for path in self.place.rglob("*")}
        return found - {"made", "made/prefix", "made/prefix/lib"}


@pytest.mark.parametrize("over_an_older_one", [False, True])
def test_a_killed_run_leaves_nothing_that_the_next_ones_do_not_remove(
    top: Path, tmp_path: Path, *, over_an_older_one: bool
) -> None:
    killed = Killed(top, tmp_path)
    for n in range(1, 100):
        if over_an_older_one:
            killed.run()
        if killed.run(kill_at=n) == 0:
            break
        recorded = any(killed.place.rglob(".installed"))
        killed.run()
        killed.run("--remove")
        assert killed.here() == set(), n
        # Before the first record is there, folders without anything in them can be left.
        assert not (recorded and any(killed.place.iterdir())), n
        shutil.rmtree(killed.place)
        killed.place.mkdir()
    assert n > 8
    killed.run("--remove")
    assert list(killed.place.iterdir()) == []


def test_uninstalling_goes_on_where_it_was_killed(top: Path, tmp_path: Path) -> None:
    killed = Killed(top, tmp_path)
    for n in range(1, 100):
        killed.run()
        ended = killed.run("--remove", kill_at=n) == 0
        recorded = any(killed.place.rglob(".installed"))
        killed.run("--remove")
        assert killed.here() == set(), n
        assert not (recorded and any(killed.place.iterdir())), n
        shutil.rmtree(killed.place)
        killed.place.mkdir()
        if ended:
            break
    assert n > 8


def test_uninstalling_after_a_killed_run(top: Path, tmp_path: Path) -> None:
    killed = Killed(top, tmp_path)
    for n in range(1, 100):
        if killed.run(kill_at=n) == 0:
            break
        recorded = any(killed.place.rglob(".installed"))
        killed.run("--remove")
        assert killed.here() == set(), n
        assert not (recorded and any(killed.place.iterdir())), n
        shutil.rmtree(killed.place)
        killed.place.mkdir()
    assert n > 8
