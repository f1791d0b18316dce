# SPDX-License-Identifier: Apache-2.0
"""ipitrace as root in a folder that others may write: nothing in it becomes part of ipitrace.

Each planted file leaves a mark when it runs.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from other_user import NOBODY

import ipitrace
from ipitrace.base.resources import example_dir

pytestmark = pytest.mark.live("root", "kvm")

CHECKOUT = Path(ipitrace.__file__).parents[1]
MODULES = (
    *("bcc", "click", "libvirt", "libvirt_qemu", "numpy", "psutil", "pyarrow", "rich", "scipy"),
    *("tabulate", "qemu", "resource"),
    # of the standard library, which comes after PYTHONPATH
    *("argparse", "asyncio", "ctypes", "dataclasses", "enum", "fcntl", "grp", "json", "re"),
    *("pathlib", "select", "selectors", "shlex", "shutil", "socket", "subprocess", "tempfile"),
    *("threading", "typing", "contextlib", "secrets", "hashlib", "functools", "inspect"),
)
PROGRAMS = ("sh", "ssh", "make", "sudo", "env", "cat", "true", "unshare", "mount", "python3")
NO_GUEST = ("guest", "status", "--vm", "x", "--via", "ssh://127.0.0.1:1")
FEW = ("--scenario", "unicast-running", "--count", "20", "--repeat", "1")


class Folder:
    """Where a stranger has put files, and where marks of those that ran go."""

    def __init__(self, path: Path, marks: Path) -> None:
        self.path, self.marks = path, marks

    def plant(self, name: str) -> None:
        place = self.path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        mark = self.marks / name.replace("/", "-")
        if name.endswith(".py"):
            place.write_text(f"open({str(mark)!r}, 'w').close()\n")
        else:
            place.write_text(f"#!/bin/sh\n: >{mark}\n")
            place.chmod(0o755)
        os.chown(place, NOBODY, NOBODY)

    def run(self, *words: object, path: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command line here, with the folder in PATH, and `path` for PYTHONPATH."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        env |= {"PATH": f":.:{self.path}:{os.environ['PATH']}"}
        env |= {"PYTHONPATH": path} if path else {}
        return subprocess.run(
            list(map(str, words)),
            cwd=self.path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )

    def assert_untouched(self) -> None:
        assert sorted(mark.name for mark in self.marks.iterdir()) == []


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    made = Folder(tmp_path_factory.mktemp("shared"), tmp_path_factory.mktemp("marks"))
    made.path.chmod(0o1777)
    for name in MODULES:
        made.plant(f"{name}.py")
    for name in PROGRAMS:
        made.plant(name)
    yield made
    made.assert_untouched()


@pytest.fixture
def with_package(folder: Folder) -> Folder:
    """The folder with an ipitrace of the stranger's, too."""
    for name in ("__init__", "__main__", "cli", "base/__init__", "base/search_path"):
        folder.plant(f"ipitrace/{name}.py")
    return folder


def test_the_trap_works(folder: Folder) -> None:
    done = folder.run(sys.executable, "-c", "import click, os; os.system('sh')")
    assert done.returncode == 0, done.stderr
    marks = {mark.name for mark in folder.marks.iterdir()}
    assert {"click.py", "sh"} <= marks
    for mark in folder.marks.iterdir():
        mark.unlink()


def commands(tmp_path: Path) -> list[tuple[tuple[object, ...], set[int]]]:
    """Command lines, and how each may end."""
    measured = tmp_path / "ab"
    return [
        (("--version",), {0}),
        (("run", "--no-trace", *FEW, "-o", tmp_path / "r"), {0}),
        (("report", tmp_path / "r"), {0}),
        (("report", "--example"), {0}),
        (("compare", example_dir(), example_dir()), {0, 4}),
        (("list",), {0}),
        (("doctor",), {0, 3, 4}),
        (NO_GUEST, {3}),
        (
            (
                *("ab", "--a", "env true", "--b", "cat </dev/null", "--rounds", "1"),
                *("-o", measured, "--allow", "other_vms", "--", "--no-trace", "--scenario", "self"),
            ),
            {0, 1, 4},
        ),
    ]


def everything(folder: Folder, tmp_path: Path, start: tuple[object, ...], path: str = "") -> None:
    for words, codes in commands(tmp_path):
        done = folder.run(*start, *words, path=path)
        assert done.returncode in codes, (words, done.stdout, done.stderr)
        folder.assert_untouched()
    assert (tmp_path / "ab" / "b" / "001" / "run.json").is_file()


def test_python_m_here(folder: Folder, tmp_path: Path) -> None:
    everything(folder, tmp_path, (sys.executable, "-m", "ipitrace"))


def script(folder: Folder, tmp_path: Path, path: str) -> Path:
    """An `ipitrace` as pip makes it, for an interpreter with `path` as PYTHONPATH.

    What the bare interpreter imports by itself, before it comes to us, is no longer planted:
    nobody but who sets PYTHONPATH can help that.
    """
    while folder.run(sys.executable, "-c", "", path=path) and (
        marks := list(folder.marks.iterdir())
    ):
        for mark in marks:
            (folder.path / mark.name).unlink()
            mark.unlink()
    assert (folder.path / "click.py").exists()
    made = tmp_path / "ipitrace"
    made.write_text(f"#!{sys.executable}\nfrom ipitrace.__main__ import main\nmain()\n")
    made.chmod(0o755)
    return made


def test_the_script_with_the_folder_everywhere(with_package: Folder, tmp_path: Path) -> None:
    """The package comes first: who puts '.' before it runs the stranger's from the start."""
    path = f"{CHECKOUT}::.:{with_package.path}"
    everything(with_package, tmp_path, (script(with_package, tmp_path, path),), path)


def test_ab_starts_the_very_ipitrace_that_it_is(with_package: Folder, tmp_path: Path) -> None:
    """One that lies in an odd place and is found through PYTHONPATH alone."""
    site = tmp_path / "site"
    site.mkdir()
    copy = site / "ipitrace"
    subprocess.run(["cp", "-r", CHECKOUT / "ipitrace", copy], check=True)
    for name in ("bpf", "guest-tools"):
        (site / name).symlink_to(CHECKOUT / name)
    init = copy / "__init__.py"
    mark = tmp_path / "copy"
    init.write_text(init.read_text() + f"open({str(mark)!r}, 'a').write('x')\n")
    words = ("ab", "--a", "true", "--b", "true", "--rounds", "1", "-o", tmp_path / "ab")
    words += ("--allow", "other_vms")
    path = f"{site}:."
    start = script(with_package, tmp_path, path)
    mark.unlink(missing_ok=True)
    done = with_package.run(start, *words, "--", "--no-trace", "--scenario", "self", path=path)
    assert done.returncode in {0, 4}, done.stderr
    assert mark.read_text() == "xxx"


HEADERS = (
    *("linux/bpf.h", "linux/bpf_common.h", "linux/kconfig.h", "linux/log2.h", "linux/ptrace.h"),
    *("linux/types.h", "linux/version.h", "uapi/linux/bpf.h", "uapi/linux/ptrace.h"),
    *("asm/ptrace.h", "asm/types.h", "bcc/proto.h", "bcc/helpers.h", "probe.h"),
    *("ipitrace_events.h", "include/linux/kconfig.h"),
)
COMPILE = """
from ipitrace.base.resources import bpf_dir
from ipitrace.tracer.compiler import compile_programs
text = "#include <linux/ptrace.h>\\nint f(void *ctx) { return 0; }\\n"
compile_programs(text, [], bpf_dir())
"""


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.live
def test_the_compiler_of_bpf_programs_takes_no_header_from_here(folder: Folder) -> None:
    for name in HEADERS:
        place = folder.path / name
        place.parent.mkdir(exist_ok=True, parents=True)
        place.write_text('#error "taken from the current folder"\n')
    inside = f"import sys; sys.path[:1] = [{str(CHECKOUT)!r}]\n{COMPILE}"
    done = folder.run(sys.executable, "-c", inside)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.live
def test_tracing_takes_nothing_from_here(with_package: Folder, tmp_path: Path) -> None:
    """bcc and its compiler, too."""
    for name in (*HEADERS, "libbcc.so.0", "vmlinux.h"):
        place = with_package.path / name
        place.parent.mkdir(exist_ok=True, parents=True)
        place.write_text('#error "taken from the current folder"\n')
    path = f"{CHECKOUT}::."
    start = script(with_package, tmp_path, path)
    done = with_package.run(start, "run", *FEW, "-o", tmp_path / "r", path=path)
    assert done.returncode in {0, 4}, done.stderr
    assert json.loads((tmp_path / "r" / "run.json").read_text())["observer"] is not None
