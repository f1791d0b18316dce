# SPDX-License-Identifier: Apache-2.0
"""`python -m lab.passthrough`: Passthrough IPI off against on, on the emulated Intel host.

The same kernel and the same guest, kvm_intel.passthrough_ipi off and then on; then what
`ipitrace compare` makes of the two recordings. Whatever the host's kernel complains of
is a failure.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from lab.common import rootfs
from lab.common.cache import cache_dir
from lab.common.command import FAILED, require_root
from lab.common.kernel import Kernel
from lab.common.session import Request, run_on
from lab.common.steps import LabError
from lab.intel.boot import boot
from lab.kernel.build import build_kernel
from lab.passthrough.jobs import (
    HARDSHIPS,
    PAIRS,
    hardships_job,
    many_job,
    risk_job,
    tables_job,
)

CPUS = 4  # of the host where a VM must not be on all of them
_COMPLAINT = re.compile(r"WARNING:|BUG:|KASAN|Oops|INFO: |possible (recursive|circular)|Call Trace")


def main() -> int:
    """Boot, run, compare. Answer the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.passthrough", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="IPIs per scenario, traced")
    parser.add_argument("--many", type=int, metavar="N", help="N IPIs per scenario, not traced")
    parser.add_argument("--hardships", action="store_true", help="disturb senders and targets")
    parser.add_argument("--debug", action="store_true", help="the same under lockdep and KASAN")
    parser.add_argument("--risk", action="store_true", help="write to foreign CPUs, too")
    parser.add_argument("--only", action="store_true", help="only these, not off against on")
    parser.add_argument("-o", "--output", type=Path, help="default: in the cache folder")
    asked = parser.parse_args()
    output = (asked.output or cache_dir() / "results" / "passthrough").resolve()
    try:
        require_root()
        kernel = build_kernel()
        if not asked.only:
            for name in ("off", "on"):
                _run(kernel, output / name, tables_job(name, asked.count), on=name == "on")
        if asked.many:
            _run(kernel, output / "many", many_job(asked.many), cpus=CPUS, show=True)
        if asked.hardships:
            _run(kernel, output / "hardships", hardships_job(HARDSHIPS), cpus=CPUS, show=True)
        if asked.debug:
            job = hardships_job(HARDSHIPS // 10)
            _run(build_kernel(debug=True), output / "debug", job, cpus=CPUS, show=True)
        if asked.risk:
            _run(kernel, output / "risk", risk_job(), cpus=CPUS, show=True, may_complain=True)
    except LabError as error:
        print(f"lab: failed: {error}", file=sys.stderr)
        return FAILED
    return 0 if asked.only else _compare(output / "off" / "recording", output / "on" / "recording")


def _run(
    kernel: Kernel,
    output: Path,
    command: str,
    *,
    on: bool = True,
    cpus: int = 2,
    show: bool = False,
    may_complain: bool = False,
) -> None:
    parameters = (
        f"kvm_intel.passthrough_ipi={int(on)}",
        "kvm_intel.nested=0",
        "x2apic_without_ir",  # Bochs has x2APIC and no IOMMU
        "loglevel=5",  # warnings, too
    )
    request = Request(
        suite=rootfs.SUITE,
        command=command,
        kernel_parameters=parameters,
        output=output,
        kernel=kernel,
        cpus=cpus,
    )
    run_on(boot, request)
    if show:
        print((output / "stdout.txt").read_text(), end="")
    console = (output / "console.log").read_text(errors="replace")
    complaints = [line.strip() for line in console.splitlines() if _COMPLAINT.search(line)]
    if complaints and not may_complain:
        raise LabError(f"the kernel complains: {complaints[0]}; console: {output / 'console.log'}")


def _compare(off: Path, on: Path) -> int:
    """Exit code 1 of ipitrace (something got worse) is a result here, not a failure."""
    pairs = [word for pair in PAIRS for word in ("--pair", "=".join(pair))]
    command: list[str | Path] = [sys.executable, "-m", "ipitrace", "compare", *pairs, off, on]
    return max(0, subprocess.run(command, check=False).returncode - 1)


if __name__ == "__main__":
    sys.exit(main())
