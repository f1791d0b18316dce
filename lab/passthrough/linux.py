# SPDX-License-Identifier: Apache-2.0
"""A Linux guest that uses Passthrough IPI: Debian's user space on the lab's own kernel.

QEMU does not support it. enable.c, which is preloaded, enables it instead of QEMU.
"""

from pathlib import Path

from lab.common.kernel import Kernel
from lab.common.script import made_by
from lab.guest.inside import guest_files
from lab.guest.module import build_module_for
from lab.kernel.build import PACKAGES as COMPILERS

_FOLDER = Path(__file__).parent
_PRELOAD = "LD_PRELOAD=/job/enable.so"
# In SeaBIOS, CPUs pass a lock on between two instructions without a branch in between. Bochs
# does not run another CPU there: the CPUs would wait forever.
_FIRMWARE = ("-bios", "qboot.rom")


def linux_files(scratch: Path, kernel: Kernel, *, on: bool) -> dict[str, Path]:
    """The files for jobs.linux_job() in /job.

    Args:
        scratch: an empty folder, kept until the job's disk is made.
        kernel: the guest's.
        on: whether the guest is given Passthrough IPI.
    """
    module = build_module_for(kernel)
    environment = [_PRELOAD] if on else []
    files = guest_files(scratch, kernel, module, environment=environment, machine=_FIRMWARE)
    return files | {"linux.sh": _FOLDER / "linux.sh", "enable.so": _enabler()}


def _enabler() -> Path:
    script = _FOLDER / "build_enable.sh"
    source = _FOLDER / "enable.c"
    return made_by(script, "enable", [], packages=COMPILERS, beside=[source]) / "enable.so"
