# SPDX-License-Identifier: Apache-2.0
"""`python -m lab.passthrough`: Passthrough IPI off against on, on the emulated Intel host.

The same kernel and the same guest, kvm_intel.passthrough_ipi off and then on; then what
`ipitrace compare` makes of the two recordings. Whatever the host's kernel complains of
is a failure.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lab.common import rootfs
from lab.common.cache import cache_dir
from lab.common.command import FAILED, require_root
from lab.common.job import build_wheel
from lab.common.session import Request, run_on
from lab.common.steps import LabError
from lab.intel.boot import boot
from lab.kernel.build import build_kernel
from lab.passthrough.jobs import HARDSHIPS, PAIRS, hardships_job, many_job, risk_job, tables_job

_COMPLAINT = re.compile(r"WARNING:|BUG:|KASAN|Oops|INFO: |possible (recursive|circular)|Call Trace")


@dataclass(frozen=True)
class Run:
    """One boot of the host.

    Attributes:
        name: of the folder in the output.
        job: the shell command to run inside.
        on: kvm_intel.passthrough_ipi.
        cpus: more than the VM's two, where it must not be on all of them.
        debug: a kernel with lockdep and KASAN.
        may_complain: what is done to the host is bad for it.
    """

    name: str
    job: str
    on: bool = True
    cpus: int = 4
    debug: bool = False
    may_complain: bool = False


def main() -> int:
    """Boot, run, compare. Answer the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.passthrough", description=__doc__)
    parser.add_argument("--count", type=int, default=320, help="IPIs per scenario, traced")
    parser.add_argument("--many", type=int, metavar="N", help="N IPIs per scenario, not traced")
    parser.add_argument("--hardships", action="store_true", help="disturb senders and targets")
    parser.add_argument("--debug", action="store_true", help="the same under lockdep and KASAN")
    parser.add_argument("--risk", action="store_true", help="write to foreign CPUs, too")
    parser.add_argument("--only", action="store_true", help="only these, not off against on")
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
        if run.name not in {"off", "on"}:
            print((output / run.name / "stdout.txt").read_text(), end="")
    return 0 if asked.only else _compare(output / "off" / "recording", output / "on" / "recording")


def _runs(asked: argparse.Namespace) -> Iterator[Run]:
    if not asked.only:
        yield Run("off", tables_job("off", asked.count), on=False, cpus=2)
        yield Run("on", tables_job("on", asked.count), cpus=2)
    if asked.many:
        yield Run("many", many_job(asked.many))
    if asked.hardships:
        yield Run("hardships", hardships_job(HARDSHIPS))
    if asked.debug:
        yield Run("debug", hardships_job(HARDSHIPS // 10), debug=True)
    if asked.risk:
        yield Run("risk", risk_job(), may_complain=True)


def _boot(run: Run, output: Path, wheel: Path) -> None:
    parameters = (
        f"kvm_intel.passthrough_ipi={int(run.on)}",
        "kvm_intel.nested=0",
        "x2apic_without_ir",  # Bochs has x2APIC and no IOMMU
        "loglevel=5",  # warnings, too
    )
    request = Request(
        suite=rootfs.SUITE,
        command=run.job,
        kernel_parameters=parameters,
        output=output,
        wheel=wheel,
        kernel=build_kernel(debug=run.debug),
        cpus=run.cpus,
    )
    run_on(boot, request)
    console = output / "console.log"
    lines = console.read_text(errors="replace").splitlines()
    complaints = [line.strip() for line in lines if _COMPLAINT.search(line)]
    if complaints and not run.may_complain:
        raise LabError(f"{run.name}: the kernel complains: {complaints[0]}; console: {console}")


def _compare(off: Path, on: Path) -> int:
    """Exit code 1 of ipitrace (something got worse) is a result here, not a failure."""
    pairs = [word for pair in PAIRS for word in ("--pair", "=".join(pair))]
    command: list[str | Path] = [sys.executable, "-m", "ipitrace", "compare", *pairs, off, on]
    return max(0, subprocess.run(command, check=False).returncode - 1)


if __name__ == "__main__":
    sys.exit(main())
