# SPDX-License-Identifier: Apache-2.0
"""`python -m lab.passthrough`: compare Passthrough IPI off and on, on the emulated Intel host.

The same kernel and guest run with kvm_intel.passthrough_ipi off and then on, and
`ipitrace compare` compares the two recordings. With --ipiv, they also run with IPI
virtualization, Intel's own way, and it is compared with both. Any warning of the host's
kernel is a failure.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from ipitrace.host.programs import own_command
from lab.common import rootfs
from lab.common.cache import cache_dir
from lab.common.command import FAILED, require_root
from lab.common.job import build_wheel
from lab.common.session import Request, run_on
from lab.common.steps import LabError
from lab.guest.host import root_image
from lab.guest.machine import guest_disk
from lab.intel.boot import ENABLE_IPIV, boot
from lab.kernel.build import build_kernel
from lab.passthrough.jobs import (
    HARDSHIPS,
    LINUX_DEBUG,
    LINUX_PAIRS,
    PAIRS,
    hardships_job,
    linux_job,
    many_job,
    many_preempted_job,
    risk_job,
    tables_job,
)
from lab.passthrough.linux import linux_files

_COMPLAINT = re.compile(r"WARNING:|BUG:|KASAN|Oops|INFO: |possible (recursive|circular)|Call Trace")


@dataclass(frozen=True)
class Run:
    """One boot of the host.

    Attributes:
        name: of the folder in the output.
        job: the shell command to run inside.
        on: kvm_intel.passthrough_ipi.
        ipiv: kvm_intel.enable_ipiv, on CPUs that have IPI virtualization.
        cpus: more than the VM's two, where it must not be on all of them.
        debug: a kernel with lockdep and KASAN.
        may_complain: what is done to the host is bad for it.
        linux: with a Linux guest, too, that is given Passthrough IPI or not.
    """

    name: str
    job: str
    on: bool = True
    ipiv: bool = False
    cpus: int = 4
    debug: bool = False
    may_complain: bool = False
    linux: bool = False


def main() -> int:
    """Boot, run, compare. Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.passthrough", description=__doc__)
    parser.add_argument("--count", type=int, default=320, help="IPIs per scenario, traced")
    parser.add_argument("--many", type=int, metavar="N", help="N IPIs per scenario, not traced")
    parser.add_argument("--ipiv", action="store_true", help="compare IPI virtualization, too")
    parser.add_argument("--hardships", action="store_true", help="disturb senders and targets")
    parser.add_argument(
        "--linux", type=int, metavar="N", help="N IPIs per scenario in a Linux guest"
    )
    parser.add_argument("--debug", action="store_true", help="the same under lockdep and KASAN")
    parser.add_argument("--debug-guest", action="store_true", help="a Linux guest under both, too")
    parser.add_argument("--risk", action="store_true", help="write to foreign CPUs, too")
    parser.add_argument(
        "--only", action="store_true", help="only these, without comparing off and on"
    )
    parser.add_argument("-o", "--output", type=Path, help="default: in the cache folder")
    asked = parser.parse_args()
    output = (asked.output or cache_dir() / "results" / "passthrough").resolve()
    runs = list(_runs(asked))
    try:
        require_root()
        with (
            tempfile.TemporaryDirectory(prefix=".wheel-", dir=cache_dir()) as scratch,
            ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,  # Bochs has one thread
        ):
            wheel = build_wheel(Path(scratch))
            list(pool.map(lambda run: _boot(run, output / run.name, wheel), runs))
    except LabError as error:
        print(f"lab: failed: {error}", file=sys.stderr)
        return FAILED
    for run in runs:
        if run.name not in {"off", "on", "ipiv"}:
            print((output / run.name / "stdout.txt").read_text(), end="")
    compared: list[tuple[str, str, Sequence[tuple[str, str]]]]
    compared = [("off", "on", PAIRS)] if not asked.only else []
    if asked.ipiv and not asked.only:
        compared += [("off", "ipiv", ()), ("ipiv", "on", PAIRS)]
    if asked.linux:
        compared.append(("linux-off", "linux-on", LINUX_PAIRS))
    return max((_compare(output / a, output / b, pairs) for a, b, pairs in compared), default=0)


def _runs(asked: argparse.Namespace) -> Iterator[Run]:
    if not asked.only:
        yield Run("off", tables_job("off", asked.count), on=False, cpus=2)
        yield Run("on", tables_job("on", asked.count), cpus=2)
    if asked.ipiv:
        yield Run("ipiv", tables_job("off", asked.count), on=False, ipiv=True, cpus=2)
    if asked.linux:
        yield Run("linux-off", linux_job("off", asked.linux), on=False, linux=True)
        yield Run("linux-on", linux_job("on", asked.linux), linux=True)
    if asked.many:
        yield Run("many", many_job(asked.many))
        yield Run("many-preempted", many_preempted_job(asked.many), cpus=2)
    if asked.hardships:
        yield Run("hardships", hardships_job(HARDSHIPS))
    if asked.debug:
        yield Run("debug", hardships_job(HARDSHIPS // 10), debug=True)
    if asked.debug_guest:
        yield Run("linux-debug", linux_job("on", LINUX_DEBUG), debug=True, linux=True)
    if asked.risk:
        yield Run("risk", risk_job(), may_complain=True)


def _boot(run: Run, output: Path, wheel: Path) -> None:
    parameters = (
        f"kvm_intel.passthrough_ipi={int(run.on)}",
        "kvm_intel.nested=0",
        "x2apic_without_ir",  # Bochs has x2APIC and no IOMMU
        "loglevel=5",  # warnings, too
        *([ENABLE_IPIV] if run.ipiv else []),
    )
    kernel = build_kernel(debug=run.debug)
    request = Request(
        suite=rootfs.SUITE,
        command=run.job,
        kernel_parameters=parameters,
        output=output,
        wheel=wheel,
        kernel=kernel,
        cpus=run.cpus,
    )
    with tempfile.TemporaryDirectory(prefix=".guest-", dir=cache_dir()) as scratch:
        if run.linux:
            request = replace(
                request,
                root_disk=root_image(),
                more_disk=guest_disk(),
                files=linux_files(Path(scratch), kernel, on=run.on),
            )
        run_on(boot, request)
    for console in (output / "console.log", output / "guest-console.txt"):
        if not console.exists():
            continue
        lines = console.read_text(errors="replace").splitlines()
        complaints = [line.strip() for line in lines if _COMPLAINT.search(line)]
        if complaints and not run.may_complain:
            raise LabError(
                f"{run.name}: kernel warning: {complaints[0]}; see the console: {console}"
            )


def _compare(off: Path, on: Path, paired: Sequence[tuple[str, str]]) -> int:
    """Exit code 1 of ipitrace (something got worse) is a result here, not a failure."""
    pairs = [word for pair in paired for word in ("--pair", "=".join(pair))]
    sides = [off / "recording", on / "recording"]
    command = own_command("compare", *pairs, *map(str, sides))
    return max(0, subprocess.run(command, check=False).returncode - 1)


if __name__ == "__main__":
    sys.exit(main())
