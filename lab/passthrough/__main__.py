# SPDX-License-Identifier: Apache-2.0
"""`python -m lab.passthrough`: Passthrough IPI off against on, on the emulated Intel host.

The same kernel and the same guest, kvm_intel.passthrough_ipi off and then on; then what
`ipitrace compare` makes of the two recordings.
"""

import argparse
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
from lab.passthrough.jobs import PAIRS, many_job, risk_job, tables_job

CPUS_FOR_RISK = 4  # the VM has two of them


def main() -> int:
    """Boot, run, compare. Answer the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.passthrough", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="IPIs per scenario, traced")
    parser.add_argument("--many", type=int, metavar="N", help="N IPIs per scenario, not traced")
    parser.add_argument("--risk", action="store_true", help="write to foreign CPUs, too")
    parser.add_argument("-o", "--output", type=Path, help="default: in the cache folder")
    asked = parser.parse_args()
    output = (asked.output or cache_dir() / "results" / "passthrough").resolve()
    try:
        require_root()
        kernel = build_kernel()
        for name in ("off", "on"):
            _run(kernel, output, name, tables_job(name, asked.count))
        if asked.many:
            _run(kernel, output, "many", many_job(asked.many), cpus=CPUS_FOR_RISK)
            print((output / "many" / "stdout.txt").read_text(), end="")
        if asked.risk:
            _run(kernel, output, "risk", risk_job(), cpus=CPUS_FOR_RISK)
            print((output / "risk" / "stdout.txt").read_text(), end="")
    except LabError as error:
        print(f"lab: failed: {error}", file=sys.stderr)
        return FAILED
    return _compare(output / "off" / "recording", output / "on" / "recording")


def _run(kernel: Kernel, output: Path, name: str, command: str, *, cpus: int = 2) -> None:
    parameters = (
        f"kvm_intel.passthrough_ipi={0 if name == 'off' else 1}",
        "kvm_intel.nested=0",
        "x2apic_without_ir",  # Bochs has x2APIC and no IOMMU
    )
    request = Request(
        suite=rootfs.SUITE,
        command=command,
        kernel_parameters=parameters,
        output=output / name,
        kernel=kernel,
        cpus=cpus,
    )
    run_on(boot, request)


def _compare(off: Path, on: Path) -> int:
    """Exit code 1 of ipitrace (something got worse) is a result here, not a failure."""
    pairs = [word for pair in PAIRS for word in ("--pair", "=".join(pair))]
    command: list[str | Path] = [sys.executable, "-m", "ipitrace", "compare", *pairs, off, on]
    return max(0, subprocess.run(command, check=False).returncode - 1)


if __name__ == "__main__":
    sys.exit(main())
