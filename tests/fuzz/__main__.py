# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.fuzz`: fuzz every target, print a table, exit 1 when one broke."""

import argparse
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tabulate import tabulate

from .corpus import load, names
from .engines import default_engine
from .supervisor import Limits, Outcome, run_target

_KEEP = Path(os.environ.get("IPITRACE_ARTIFACTS", "artifacts")) / "fuzz"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="of each target (600)")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of each, if sooner (1 M)")
    parser.add_argument("--hang", type=float, default=20.0, help="seconds one input may take (20)")
    parser.add_argument("--memory", type=int, default=512, help="MiB of a process (512)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="at a time")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(31))
    parser.add_argument("--engine", choices=("atheris", "hypothesis"), default=default_engine())
    parser.add_argument("--target", action="append", choices=names(), help="only this; repeatable")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="give FILE to --target once")
    return parser.parse_args()


def main() -> int:
    """Do what the command line says; the exit code."""
    options = _arguments()
    targets = options.target or names()
    if options.replay is not None:
        load(targets[0])(options.replay.read_bytes())
        return 0
    limits = Limits(options.seconds, options.inputs, options.hang, options.memory)
    with ThreadPoolExecutor(options.jobs) as pool:
        running = [
            pool.submit(run_target, name, options.engine, limits, options.seed, _KEEP)
            for name in targets
        ]
        outcomes = [_told(future.result()) for future in running]
    print(f"\nseed {options.seed}")
    print(
        tabulate(
            [
                (
                    *(o.target, o.engine, o.inputs, f"{o.seconds:.0f}"),
                    *(o.coverage, o.peak_mib, o.found or "ok"),
                )
                for o in outcomes
            ],
            ("target", "engine", "inputs", "seconds", "edges", "peak MiB", "result"),
            missingval="-",
        )
    )
    return int(any(o.found for o in outcomes))


def _told(outcome: Outcome) -> Outcome:
    if outcome.found:
        print(f"{outcome.target}: {outcome.found}\n{outcome.details}")
        print(f"The input: {outcome.kept}", flush=True)
        print(f"Again: make fuzz ARGS='--target {outcome.target} --replay {outcome.kept}'\n")
    return outcome


if __name__ == "__main__":
    sys.exit(main())
