# SPDX-License-Identifier: Apache-2.0
"""The real command line in processes of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipitrace

CHECKOUT = Path(ipitrace.__file__).parents[1]
IPITRACE = (sys.executable, "-m", "ipitrace")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1"}
ENVIRONMENT.pop("IPITRACE_TRACEBACK", None)


def ipi(
    *words: object,
    through: Sequence[str] = (),
    before: Callable[[], object] | None = None,
    **options: Any,
) -> "subprocess.CompletedProcess[str]":
    """Run it to its end, started by the command `through`.

    `before` is called in the process before it starts.
    """
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    options = {"stdin": subprocess.DEVNULL, "env": ENVIRONMENT, "timeout": 120} | options
    command = [*through, *IPITRACE, *map(str, words)]
    return subprocess.run(command, check=False, preexec_fn=before, **options)


def python(program: str, *words: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a program that starts ipitrace's main() after it changed something."""
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=ENVIRONMENT | options.pop("env", {}),
        check=False,
        timeout=120,
        **options,
    )
