# SPDX-License-Identifier: Apache-2.0
"""script/setup where it has to refuse, run for real in a copy with a PATH of our making.

That it succeeds is shown by every run of script/test, whose set-up this is.
"""

import hashlib
import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from other_user import NOBODY, open_folder

CHECKOUT = Path(__file__).parents[3]
BASE_TOOLS = [
    "cat",
    "chown",
    "cut",
    "dirname",
    "find",
    "flock",
    "grep",
    "id",
    "mv",
    "rm",
    "sed",
    "sha256sum",
    "stat",
]
BUILD_TOOLS = ["cc", "make", "ld", "objcopy"]


class Copy:
    """A copy of what script/setup reads, and a PATH that holds only what is put there."""

    def __init__(self, directory: Path) -> None:
        self.top = directory / "checkout"
        self.bin = directory / "bin"
        self.log = directory / "log"
        self.bin.mkdir()
        shutil.copytree(CHECKOUT / "script", self.top / "script")
        shutil.copytree(CHECKOUT / "requirements", self.top / "requirements")
        shutil.copy(CHECKOUT / "pyproject.toml", self.top)
        self.log.touch()
        self.log.chmod(0o666)
        self.offer(*BASE_TOOLS)

    def offer(self, *names: str) -> None:
        """Put this machine's programs on the PATH."""
        for name in names:
            found = shutil.which(name)
            assert found, f"{name} is not installed"
            (self.bin / name).symlink_to(found)

    def offer_recorder(self, *names: str) -> None:
        """Put programs on the PATH that only write down how they were called, and fail."""
        for name in names:
            program = self.bin / name
            program.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.log}\nexit 1\n')
            program.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()

    def setup(
        self, *args: str, as_nobody: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        drop = as_nobody and os.geteuid() == 0
        return subprocess.run(
            ["/bin/sh", "script/setup", *args],
            cwd=self.top,
            env={"PATH": str(self.bin), "HOME": str(self.top), **environment},
            user=NOBODY if drop else None,
            group=NOBODY if drop else None,
            extra_groups=[] if drop else None,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.fixture
def copy() -> Iterator[Copy]:
    # Not tmp_path: another user must be able to enter.
    with open_folder() as folder:
        yield Copy(folder)


def test_an_unknown_group_is_a_usage_error(copy: Copy) -> None:
    result = copy.setup("everything")
    assert result.returncode == 2
    assert (
        "no group 'everything'; choose runtime, install, test, dev, lab or supply" in result.stderr
    )


def test_an_unknown_distribution_gets_the_list_of_what_is_needed(copy: Copy) -> None:
    result = copy.setup()
    assert result.returncode == 3
    assert {"    gcc", "    make", "    binutils"} <= set(result.stderr.splitlines())
    assert not (copy.top / ".venv").exists()


@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("apt-get", "sudo apt-get -qq -o DPkg::Lock::Timeout=300 install --yes"),
        ("dnf", "sudo dnf install -y"),
        ("zypper", "sudo zypper --non-interactive install"),
        ("pacman", "sudo pacman -Sy"),
    ],
)
def test_without_root_it_says_the_command_and_runs_nothing(
    copy: Copy, manager: str, command: str
) -> None:
    copy.offer_recorder(manager)
    result = copy.setup("runtime", as_nobody=True)
    assert result.returncode == 3
    (line,) = [line.strip() for line in result.stderr.splitlines() if command in line]
    assert line.startswith(command)
    assert line.endswith("gcc make binutils")
    assert copy.calls == []


@pytest.mark.live("root")
def test_as_root_it_says_what_it_installs_and_stops_when_that_fails(copy: Copy) -> None:
    copy.offer_recorder("apt-get", "dpkg")
    result = copy.setup("runtime")
    assert result.returncode == 3
    dpkg, update, install = copy.calls
    assert dpkg == "dpkg --configure -a"
    assert update == "apt-get -qq update"
    assert install.endswith("gcc make binutils")
    assert f"+ {install}" in result.stdout.splitlines()
    assert "apt-get could not install" in result.stderr


def test_the_python_on_path_is_never_asked(copy: Copy) -> None:
    copy.offer_recorder("python", "python3", "python3.11", "python3.12", "python3.13")
    assert copy.setup().returncode == 3
    assert copy.calls == []


def test_the_unrelated_bcc_is_told_from_the_real_one(copy: Copy) -> None:
    (copy.top / "bcc.py").write_text("lattice = None\n")
    result = copy.setup(PYTHONPATH=str(copy.top))
    assert result.returncode == 3
    assert f"{copy.top}/bcc.py, which is not the BPF Compiler Collection" in result.stderr


def test_a_failed_installation_leaves_no_stamp(copy: Copy) -> None:
    copy.offer(*BUILD_TOOLS)
    result = copy.setup(PIP_NO_INDEX="1", PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull)
    assert result.returncode == 1, result.stderr
    assert (copy.top / ".venv/bin/python").exists()
    assert not (copy.top / ".venv/.setup-stamp").exists()


@pytest.mark.parametrize("its_own", [True, False])
def test_a_file_that_is_not_the_locked_one_is_refused(copy: Copy, *, its_own: bool) -> None:
    wheel = made_up_wheel(copy.top)
    digest = hashlib.sha256(wheel.read_bytes() if its_own else b"").hexdigest()
    lock = copy.top / "requirements/runtime.txt"
    lock.write_text(f"harmless==1.0 --hash=sha256:{digest}\n")
    # The checkout itself is not there: what comes after the locked packages fails either way.
    copy.offer(*BUILD_TOOLS)
    result = copy.setup(
        PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheel.parent), PIP_CONFIG_FILE=os.devnull
    )
    assert result.returncode != 0
    assert ("DO NOT MATCH THE HASHES" in result.stderr) != its_own
    assert ("--editable ." in result.stdout) == its_own


def made_up_wheel(directory: Path) -> Path:
    """A package without content, as pip takes it."""
    wheel = directory / "wheels/harmless-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    about = "harmless-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: harmless\nVersion: 1.0\n")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        file.writestr(f"{about}/RECORD", "")
    return wheel
