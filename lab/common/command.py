# SPDX-License-Identifier: Apache-2.0
"""The command line of both emulated hosts."""

import argparse
import os
import shlex
from collections.abc import Callable
from pathlib import Path

from lab.common import rootfs
from lab.common.cache import cache_dir
from lab.common.job import ipitrace_command
from lab.common.session import Parts, Request, run_on
from lab.common.steps import LabError, say

FAILED = 3
WATCHED_COUNT = "300"  # enough for `watch` to say that no IPI is missing
_WATCHED = Path(__file__).with_name("watched.py")


def main(host: str, boot: Callable[[Parts], None]) -> int:
    """Run ipitrace on an emulated host; print its output. Return the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m lab.{host}", description=__doc__)
    parser.add_argument("--suite", default=rootfs.SUITE, help="Debian suite of the kernel")
    parser.add_argument("--parameter", action="append", default=[], help="kernel parameter")
    parser.add_argument("--wheel", type=Path, help="default: built from the checkout")
    parser.add_argument("-o", "--output", type=Path, help="default: in the cache folder")
    parser.add_argument("--count", default="600", help="IPIs measured per scenario")
    parser.add_argument(
        "--then", help="options of a second `ipitrace run` in the same boot, into `second`"
    )
    parser.add_argument(
        "--watch",
        action="append",
        default=[],
        metavar="SCENARIO",
        help="afterwards, also count a storm of it by `ipitrace watch` (watched.json)",
    )
    parser.add_argument("more", nargs="*", help="further options of `ipitrace run`, after --")
    asked = parser.parse_args()
    try:
        require_root()
        output = (asked.output or cache_dir() / "results" / host).resolve()
        arguments = ["run", "--count", asked.count, "-o", "/job/result/recording", *asked.more]
        command = ipitrace_command(arguments)
        if asked.then is not None:
            second = ["run", *shlex.split(asked.then), "-o", "/job/result/second"]
            command = f"{{ {command} && {ipitrace_command(second)} >/job/result/second.txt; }}"
        files = {}
        if asked.watch:
            words = shlex.join(["python3", f"/job/{_WATCHED.name}", WATCHED_COUNT, *asked.watch])
            command = f"{{ {command} && {words}; }}"
            files[_WATCHED.name] = _WATCHED
        request = Request(asked.suite, command, asked.parameter, output, asked.wheel, files=files)
        run_on(boot, request)
    except LabError as error:
        say(f"failed: {error}")
        return FAILED
    print((output / "stdout.txt").read_text(), end="")
    return 0


def require_root() -> None:
    """Check that this is root; otherwise raise LabError."""
    if os.geteuid() != 0:
        raise LabError(
            "the lab needs root to create file systems and to mount them: run it as root"
        )
