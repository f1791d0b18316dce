# SPDX-License-Identifier: Apache-2.0
"""ipitrace as another user, with the capabilities that are named and no others."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from other_user import NOBODY, open_folder, reachable

import ipitrace

LOOK = ("sys_ptrace", "dac_read_search")
TRACE = ("bpf", "perfmon")
# debugfs and tracefs are mounted, as on any host with systemd, and /dev/kvm is a group's.
# They may be mounted already: by the host, or by what ipitrace did in the process of the tests.
_MOUNTED = """
mount --make-rprivate /
mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug
mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing
mount -t tmpfs none /mnt && mknod /mnt/kvm c 10 232 && chown {uid} /mnt/kvm
mount --bind /mnt/kvm /dev/kvm
"""
_BECOME = """
exec setpriv --reuid={uid} --regid={uid} --clear-groups --inh-caps={caps} \
    --ambient-caps={caps} --bounding-set={caps} "$@"
"""
NOT_MOUNTED = """
umount -R /sys/kernel/tracing /sys/kernel/debug
"""


def command(words: Sequence[str], capabilities: Sequence[str], more: str = "") -> list[str]:
    """ipitrace with `words`; `more` is done in its mount namespace before, as root."""
    caps = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    script = f"{_MOUNTED}{more}{_BECOME}".format(uid=NOBODY, caps=caps)
    unshare = ["unshare", "--mount", "sh", "-ec", script, "sh"]
    return [*reachable(), *unshare, sys.executable, "-m", "ipitrace", *words]


def environment(path: str | None = None) -> dict[str, str]:
    """Of such a process; `path` is its PATH."""
    return {
        **os.environ,
        "PYTHONPATH": str(Path(ipitrace.__file__).parents[1]),
        "HOME": "/nonexistent",
        "PATH": path or os.environ["PATH"],
    }


def run(
    *words: str, capabilities: Sequence[str], more: str = "", path: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run it to its end."""
    return subprocess.run(
        command(words, capabilities, more),
        capture_output=True,
        text=True,
        check=False,
        env=environment(path),
        timeout=120,
        cwd="/",
    )


def without(names: Sequence[str], *fewer: str) -> tuple[str, ...]:
    """All but `fewer`."""
    return tuple(name for name in names if name not in fewer)


@contextlib.contextmanager
def folder_of_theirs() -> Iterator[Path]:
    """A folder of that user's, in one that everybody may enter."""
    with open_folder() as folder:
        own = folder / "own"
        own.mkdir()
        os.chown(own, NOBODY, NOBODY)
        yield own
