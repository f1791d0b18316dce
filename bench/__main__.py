# SPDX-License-Identifier: Apache-2.0
"""Run the benchmarks and print their tables."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.correlator import correlator
from bench.loading import loading
from bench.neighbour import neighbour
from bench.peers import peers
from bench.programs import in_guest, on_host
from bench.report import Report, write_json
from bench.rings import rings
from bench.starting import starting
from bench.watching import watching
from ipitrace.base.errors import IpitraceError
from ipitrace.host.fingerprint import one_line, read_fingerprint
from ipitrace.host.programs import find_program

BENCHMARKS: dict[str, Callable[[], Report]] = {
    "programs": in_guest,
    "switches": on_host,
    "rings": rings,
    "loading": loading,
    "starting": starting,
    "correlator": correlator,
    "peers": peers,
    "watching": watching,
    "neighbour": neighbour,
}

_INSIDE = "IPITRACE_BENCH_MOUNTED"
_MOUNTS = (("tracefs", "/sys/kernel/tracing"), ("debugfs", "/sys/kernel/debug"))


def main() -> None:
    """Run the selected benchmarks; all of them by default."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", choices=BENCHMARKS, action="append", help="may be repeated")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/bench.json"))
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("The benchmarks attach BPF programs: run them as root (sudo make bench).")
    if _INSIDE not in os.environ:
        _enter_private_mounts()
    _mount_what_is_missing()
    load, cpus = os.getloadavg()[0], len(os.sched_getaffinity(0))
    print(f"{one_line(read_fingerprint())}; load {load:.1f} on {cpus} CPUs at the start.\n")
    reports = []
    for name in options.only or BENCHMARKS:
        started_s = time.monotonic()
        try:
            report = BENCHMARKS[name]()
        except IpitraceError as error:
            sys.exit(f"{error.message} {error.hint}")
        print(report.markdown(), flush=True)
        print(f"{name}: {time.monotonic() - started_s:.0f} s", file=sys.stderr)
        reports.append(report)
    write_json(reports, options.output)
    print(f"Wrote {options.output}", file=sys.stderr)


def _enter_private_mounts() -> None:
    """Start again in a new mount namespace, in which other tools find the mounts."""
    os.environ[_INSIDE] = "1"
    arguments = [find_program("unshare"), "--mount", sys.executable, "-m", "bench", *sys.argv[1:]]
    os.execv(arguments[0], arguments)  # noqa: S606


def _mount_what_is_missing() -> None:
    for kind, where in _MOUNTS:
        if not os.path.ismount(where):
            subprocess.run([find_program("mount"), "-t", kind, kind, where], check=False)


if __name__ == "__main__":
    main()
