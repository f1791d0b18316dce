# SPDX-License-Identifier: Apache-2.0
"""Putting ipitrace_storm into a guest, and taking it out again without a trace.

Everything that is put there lies in one folder, ipitrace_storm.INSTALLED; the module is loaded
from it. So an install that was interrupted can be repeated, or removed.
"""

import contextlib
import hashlib
import io
import re
import shlex
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ipitrace.base.errors import HostError
from ipitrace.base.foreign import plain
from ipitrace.base.resources import guest_tools_dir
from ipitrace.host.child import run_bounded
from ipitrace.storm import limits
from ipitrace.storm.guest_json import shown
from ipitrace.storm.linux.former import remove_former
from ipitrace.storm.linux.guest_change import CHANGE_S, Step, Tell, checked, unload
from ipitrace.storm.linux.helper import HELPER, INSTALLED, MODULE, HelperStatus, read_status
from ipitrace.storm.transport.shell import Shell, nothing

_HELPER_PATH: Final = f"{INSTALLED}/{HELPER}"
_MODULE_PATH: Final = f"{INSTALLED}/src/{MODULE}.ko"
_STAMP_PATH: Final = f"{INSTALLED}/installed"
_BUILD_S: Final = 900.0  # under emulation; 5 s on a real machine
_STATE_LINES: Final = 5
_RELEASE: Final = re.compile(r"[\w.+~-]{1,64}", re.ASCII)
"""The format of uname -r, which becomes part of a path; its limit in the kernel is 64."""
_OURS: Final = "helper"  # sources with such names are the helper's, which is built already
_COUNT: Final = re.compile(r"\d{1,9}", re.ASCII)
_TAIL_LINES: Final = 8
_PACKAGES: Final = {
    "debian": "apt-get install linux-headers-{kernel} make gcc",
    "fedora": "dnf install kernel-devel-{kernel} make gcc",
    "suse": "zypper install kernel-default-devel make gcc",
    "arch": "pacman -S linux-headers make gcc",
}
_REFUSED: Final = {
    "Key was rejected": "The guest's kernel loads signed modules only (Secure Boot): sign it, or "
    "boot the guest without it.",
    "Required key not available": "The guest's kernel loads signed modules only (Secure Boot): "
    "sign it, or boot the guest without it.",
    "Operation not permitted": "Lockdown or a confined login (SELinux) forbids modules there.",
    "Invalid module format": "The module belongs to another kernel: see the guest's dmesg.",
}


@dataclass(frozen=True)
class _Guest:
    """The state of the guest before an installation."""

    kernel: str
    like: str
    lacking: tuple[str, ...]
    loaded: bool
    stamp: str


_STATE_SCRIPT: Final = f"""
uname -r
( . /etc/os-release && echo "$ID $ID_LIKE" ) 2>/dev/null || echo unknown
[ -e "/lib/modules/$(uname -r)/build/Makefile" ] || printf 'headers '
command -v make >/dev/null || printf 'make '
command -v gcc >/dev/null || command -v cc >/dev/null || printf 'gcc '
echo
[ -e /sys/module/{MODULE} ] && echo loaded || echo no
cat {_STAMP_PATH} 2>/dev/null || echo none
"""


def install(shell: Shell, tell: Tell, step: Step, module: Path | None = None) -> HelperStatus:
    """Copy, build and load; steps that are already done are skipped.

    What an older ipitrace left there is removed first.

    Args:
        shell: the transport to the guest.
        tell: prints each finished step.
        step: shows the step in progress.
        module: built elsewhere for the guest's kernel; None builds it in the guest.

    Raises:
        HostError: it cannot be built or loaded there. The copied files stay for another try;
            `remove` deletes them.
    """
    with step("reading the guest's state"):
        guest = _read_state(shell)
    files = _files(module)
    stamp = f"{guest.kernel} {_digest(files)}"
    up_to_date = guest.stamp == stamp
    if not up_to_date and module is None and guest.lacking:
        raise _lacks(guest)
    remove_former(shell, tell, step)
    if up_to_date:
        tell(f"{INSTALLED} is up to date")
    else:
        if guest.loaded:
            unload(shell, MODULE, tell)
            guest = _read_state(shell)
        checked(shell.run(["rm", "-rf", INSTALLED]), f"emptying {INSTALLED}")
        unpack = ["sh", "-c", f"umask 022; mkdir -p {INSTALLED} && tar -x -C {INSTALLED}"]
        with step(f"copying {len(files)} files to the guest") as tick:
            checked(shell.run(unpack, stdin=_archive(files), tick=tick), "copying to the guest")
        tell(f"copied {len(files)} files to {INSTALLED}")
        if module is None:
            with step(f"building {MODULE}.ko in the guest for Linux {guest.kernel}") as tick:
                _build(shell, guest.kernel, tick)
            tell(f"built {MODULE}.ko for Linux {guest.kernel}")
        write = ["sh", "-c", f'echo "$1" >{_STAMP_PATH}', "sh", stamp]
        checked(shell.run(write), f"writing {_STAMP_PATH}")
    if guest.loaded:
        tell(f"{MODULE} is loaded")
    else:
        with step(f"loading {MODULE}"):
            _load(shell)
        tell(f"loaded {MODULE}")
    return read_status(shell, _HELPER_PATH)


def remove(shell: Shell, tell: Tell) -> None:
    """Unload the module and remove whatever install() put there, an older one's as well.

    Raises:
        HostError: a storm is running, or the guest refuses.
    """
    guest = _read_state(shell)
    if guest.loaded:
        unload(shell, MODULE, tell)
    former = remove_former(shell, tell, _untold)
    there = shell.run(["sh", "-c", f"[ -e {INSTALLED} ] && find {INSTALLED} -type f | wc -l"])
    if there.status == 0:
        checked(shell.run(["rm", "-rf", INSTALLED]), f"removing {INSTALLED}")
        n = int(there.text) if _COUNT.fullmatch(there.text) else "unknown number of"
        tell(f"removed {INSTALLED} and the {n} files in it")
    if there.status != 0 and not guest.loaded and not former:
        tell("there was nothing to remove")


@contextlib.contextmanager
def _untold(_what: str) -> Iterator[Callable[[], None]]:
    yield nothing


def _read_state(shell: Shell) -> _Guest:
    done = checked(shell.run(["sh", "-c", _STATE_SCRIPT]), "reading the guest's state")
    lines = done.stdout.decode(errors="replace").splitlines()[:_STATE_LINES]
    valid = len(lines) == _STATE_LINES and all(
        len(line) <= limits.STATUS_CHARS and line.isprintable() for line in lines
    )
    if not valid or not _RELEASE.fullmatch(lines[0]):
        raise HostError(
            f"The guest's description of itself is not valid: {shown(done.stdout)}.",
            "Its output must not be mixed with other output: check the login's start-up files.",
        )
    kernel, like, lacking, loaded, stamp = lines
    return _Guest(kernel, like, tuple(lacking.split()), loaded == "loaded", stamp)


def _files(module: Path | None) -> dict[str, Path]:
    """The files to copy into the guest, by their path below INSTALLED."""
    tools = guest_tools_dir()
    sources = tools / MODULE
    files = {HELPER: _helper(sources)}
    if module is not None:
        return files | {f"src/{MODULE}.ko": module}
    files["src/storm_abi.h"] = tools / "storm_abi.h"
    parts = [f for f in sources.iterdir() if f.suffix in {".c", ".h"} or f.name == "Kbuild"]
    kept = [f for f in parts if not f.name.endswith(".mod.c") and not f.name.startswith(_OURS)]
    return files | {f"src/{f.name}": f for f in sorted(kept)}


def _helper(sources: Path) -> Path:
    """The static helper; a checkout's is built if it is missing."""
    helper = sources / HELPER
    if not helper.is_file():
        done = run_bounded(
            ["make", "-s", "-C", str(sources), HELPER],
            timeout_s=CHANGE_S,
            limit_bytes=limits.TEXT_BYTES,
        )
        if done.status:
            raise HostError(
                f"The helper {helper} is missing, and make cannot build it (status {done.status}).",
                f"See the output of: make -C {sources} {HELPER} (it needs a static libc).",
            )
    return helper


def _digest(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(f"{name} {hashlib.sha256(_bytes_of(path)).hexdigest()}\n".encode())
    return digest.hexdigest()


def _archive(files: Mapping[str, Path]) -> bytes:
    """A tar archive of the files, owned by root."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, path in files.items():
            data = _bytes_of(path)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mode = 0o755 if name == HELPER else 0o644
            archive.addfile(entry, io.BytesIO(data))
    return memory.getvalue()


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise HostError(f"{path} cannot be read: {error.strerror}.", "") from error


def _build(shell: Shell, kernel: str, tick: Callable[[], None]) -> None:
    command = ["make", "-C", f"/lib/modules/{kernel}/build", f"M={INSTALLED}/src", "modules"]
    done = shell.run(command, timeout_s=CHANGE_S, tick=tick)
    if done.status != 0:
        lines = (done.text + "\n" + done.stderr).strip().splitlines()[-_TAIL_LINES:]
        tail = "\n".join(plain(line) for line in lines)
        raise HostError(
            f"The module could not be built in the guest ({shlex.join(command)}):\n{tail}",
            "Fix this, or give a module that was built elsewhere with --module.",
        )


def _load(shell: Shell) -> None:
    done = shell.run(["insmod", _MODULE_PATH])
    if done.status != 0:
        hint = next((h for sign, h in _REFUSED.items() if sign in done.stderr), "See its dmesg.")
        raise HostError(f"The guest did not load the module: {plain(done.stderr)}", hint)


def _lacks(guest: _Guest) -> HostError:
    names = {"headers": f"the headers of its kernel {guest.kernel}"}
    missing = ", ".join(names.get(what, what) for what in guest.lacking)
    how = next((text for name, text in _PACKAGES.items() if name in guest.like), None)
    hint = f"In the guest: {how.format(kernel=guest.kernel)}. " if how else ""
    return HostError(
        f"The module cannot be built in the guest, which lacks {missing}.",
        f"{hint}Or give a module that was built elsewhere for this kernel with --module.",
    )
