# SPDX-License-Identifier: Apache-2.0
"""`python -m lab.nested`: measure a Debian guest under kvm_amd in the emulated AMD host."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lab.amd.boot import boot
from lab.common import kernel, rootfs
from lab.common.cache import cache_dir
from lab.common.command import FAILED
from lab.common.session import Request, run_on
from lab.common.steps import LabError, say
from lab.guest.host import root_image
from lab.guest.inside import guest_files
from lab.guest.machine import Ssh, guest_disk, host_key, make_key, ssh_settings
from lab.guest.module import build_module

_JOB = Path(__file__).with_name("job.sh")
_PORT = 2222  # of the emulated host's loopback


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.nested", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, help="default: in the cache folder")
    parser.add_argument("more", nargs="*", help="options of `ipitrace run`, after --")
    asked = parser.parse_args()
    output = (asked.output or cache_dir() / "results" / "nested").resolve()
    try:
        with tempfile.TemporaryDirectory(prefix=".nested-", dir=cache_dir()) as scratch:
            _run(output, asked.more, Path(scratch))
    except LabError as error:
        say(f"failed: {error}")
        return FAILED
    print((output / "stdout.txt").read_text(), end="")
    return 0


def _run(output: Path, arguments: Sequence[str], scratch: Path) -> None:
    chosen, module = kernel.fetch(), build_module(rootfs.SUITE)
    if module.release != chosen.release:
        raise LabError(f"the module is for {module.release}, the kernel is {chosen.release}")
    key, public_key = make_key(scratch)
    texts = {
        "arguments": "\n".join(arguments) + "\n",
        "known_hosts": f"[127.0.0.1]:{_PORT} {host_key()}\n",
        "config": ssh_settings(_PORT, key="/tmp/key", known_hosts="/job/known_hosts"),  # noqa: S108
    }
    files = guest_files(scratch, chosen, module, ssh=Ssh(_PORT, public_key))
    for name, text in texts.items():
        (scratch / name).write_text(text)
        files[name] = scratch / name
    request = Request(
        suite=rootfs.SUITE,
        command="sh /job/job.sh",
        kernel_parameters=(),
        output=output,
        kernel=chosen,
        cpus=3,
        root_disk=root_image(),
        more_disk=guest_disk(),
        files=files | {"job.sh": _JOB, "key": key},
    )
    run_on(boot, request)


if __name__ == "__main__":
    sys.exit(main())
