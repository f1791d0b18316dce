# SPDX-License-Identifier: Apache-2.0
"""`make install` into /usr/local, a mount of the test's own, and what `sudo ipitrace` then does."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from other_user import NOBODY, as_user

import ipitrace
from ipitrace.base.errors import ExitCode

pytestmark = [pytest.mark.live, pytest.mark.slow]

ROOT = Path(ipitrace.__file__).parents[1]
HOME = Path("/usr/local/lib/ipitrace")
SECURE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # Debian's sudoers


class Machine:
    """This one, with another /usr/local."""

    def __init__(self, namespace: str) -> None:
        self._enter = ["nsenter", f"--mount={namespace}", "--"]

    def run(
        self, *words: object, where: Path = ROOT, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program; its working directory is `where`."""
        return subprocess.run(
            [
                *self._enter,
                "sh",
                "-c",
                'cd "$1" && shift && exec "$@"',
                "sh",
                where,
                *map(str, words),
            ],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def sudo(
        self, *words: object, where: Path = ROOT, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """As sudo runs a program: found by its own PATH, with little of the environment."""
        sudo = ["sudo", "-n"] if shutil.which("sudo") else ["env", "-i", f"PATH={SECURE_PATH}"]
        return self.run(*sudo, *words, where=where, **environment)

    def make(self, target: str) -> str:
        done = self.run("make", "--silent", target)
        if "so they could change what is installed from" in done.stderr:
            pytest.skip(f"this checkout is not to be installed from: {done.stderr}")
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """ipitrace is installed there."""
    mount = "mount -t tmpfs none /usr/local && mkdir /usr/local/lib && echo && exec sleep 3600"
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", mount], stdout=subprocess.PIPE
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.read(1) == b"\n"
            found = Machine(f"/proc/{holder.pid}/ns/mnt")
            assert "Installed /usr/local/bin/ipitrace and" in found.make("install")
            yield found
        finally:
            holder.kill()


def test_sudo_ipitrace_measures(machine: Machine, tmp_path: Path) -> None:
    """With BPF sources, payload and the distribution's bcc, and nothing from where it is called."""
    (tmp_path / "ipitrace").mkdir()
    for name in ("ipitrace/__init__.py", "click.py", "numpy.py", "sitecustomize.py"):
        (tmp_path / name).write_text("raise SystemExit('not ours')")
    command = ["ipitrace", "run", "--scenario", "unicast-running", "--count", 120, "-o", "run"]
    for done in (
        machine.sudo(*command, where=tmp_path),
        machine.run("ipitrace", "report", "run", where=tmp_path, PYTHONPATH="."),
        machine.run("ipitrace", "report", "run", "--ipi", 3, where=tmp_path, PYTHONPATH="."),
        machine.sudo("ipitrace", "report", "--example", where=tmp_path),
    ):
        # A busy machine may make the numbers worthless.
        assert done.returncode in {ExitCode.OK, ExitCode.UNTRUSTWORTHY}, done.stderr
        assert "not ours" not in done.stdout + done.stderr
        assert "unicast-running" in done.stdout
    where = machine.run(HOME / "bin/python3", "-I", "-c", "import ipitrace; print(ipitrace)")
    assert str(HOME) in where.stdout


def test_all_of_it_is_roots(machine: Machine) -> None:
    found = machine.run(
        "find", "/usr/local", "!", "-uid", "0", "-o", "-perm", "/022", "!", "-type", "l"
    )
    assert found.stdout.splitlines() == ["/usr/local"]  # the tmpfs is sticky and open, as /tmp
    assert machine.run("find", HOME, "-path", "*/bin/*", "!", "-name", "python*").stdout == ""


def test_each_start_looks_again(machine: Machine) -> None:
    assert machine.run(*as_user(), "ipitrace", "--version").returncode == 0
    for change, undo in (
        (["chmod", "o+w", "/usr/local/lib"], ["chmod", "o-w", "/usr/local/lib"]),
        (["chmod", "1777", HOME / "bin"], ["chmod", "755", HOME / "bin"]),
        (["chown", f"{NOBODY}", HOME], ["chown", "0", HOME]),
        (["chgrp", f"{NOBODY}", HOME], ["chgrp", "0", HOME]),
    ):
        if change[0] == "chgrp":
            machine.run("chmod", "g+w", HOME)
        assert machine.run(*change).returncode == 0
        done = machine.sudo("ipitrace", "--version")
        assert done.returncode == ExitCode.ENVIRONMENT, (change, done.stdout)
        assert f"Others may write {change[-1]}, so" in done.stderr
        assert "chmod go-w" in done.stderr
        machine.run(*undo)
    machine.run("chmod", "g-w", HOME)
    assert machine.sudo("ipitrace", "--version").returncode == 0


def test_an_older_one_is_replaced(machine: Machine) -> None:
    machine.run("touch", HOME / "left", f"{HOME}/bin/left")
    machine.run("rm", HOME / "bin/python3.11", HOME / "bin/python3", HOME / "bin/python")
    broken = machine.sudo("ipitrace", "--version")
    assert (broken.returncode, "Run 'make install' again" in broken.stderr) == (3, True)
    machine.make("install")
    assert machine.sudo("ipitrace", "--version").stdout.startswith("ipitrace, version")
    left = machine.run("find", "/usr/local", "-name", "left", "-o", "-name", "ipitrace.*")
    assert left.stdout == ""


def test_nothing_of_it_is_left(machine: Machine) -> None:
    """The last test here: what was there before is there afterwards, and no more."""
    assert machine.run("touch", "/usr/local/lib/another").returncode == 0
    machine.make("uninstall")
    found = machine.run("find", "/usr/local").stdout.splitlines()
    assert sorted(found) == ["/usr/local", "/usr/local/lib", "/usr/local/lib/another"]
    assert machine.make("uninstall") == "There is no ipitrace in /usr/local.\n"
