# SPDX-License-Identifier: Apache-2.0
"""Fuzzes one target in a process of its own, and sees every way in which that can end."""

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .corpus import seeds
from .progress import Progress
from .watched import ENOUGH, own_peak_bytes

_LOOK_S: Final = 0.2
_STARTING_S: Final = 60.0  # imports, on a busy machine
_CHECKOUT: Final = Path(__file__).parents[2]


@dataclass(frozen=True)
class Limits:
    """How long, and what one input may take."""

    seconds: float
    inputs: int
    hang_s: float
    memory_mib: int


@dataclass(frozen=True)
class Outcome:
    """One target's.

    Attributes:
        coverage: edges of ipitrace that were reached, as libFuzzer counts them; None unknown.
        peak_mib: of the process, imports included.
        found: None, or what went wrong.
        kept: the file that holds the input that did it.
    """

    target: str
    engine: str
    inputs: int
    seconds: float
    coverage: int | None
    peak_mib: int
    found: str | None = None
    details: str = ""
    kept: Path | None = None


def run_target(target: str, engine: str, limits: Limits, seed: int, keep: Path) -> Outcome:
    """Fuzz `target`; an input that breaks it is kept in the folder `keep`."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="ipitrace-fuzz-", dir=memory) as folder:
        scratch = Path(folder)
        progress = Progress(scratch / "progress", create=True)
        words = (limits.seconds, limits.inputs, limits.memory_mib, seed, folder)
        command = [sys.executable, "-m", "tests.fuzz.watched", target, engine]
        started_s = time.monotonic()
        with (scratch / "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, *map(str, words)],
                cwd=_CHECKOUT,
                env={**os.environ, "TMPDIR": folder},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                found, peak_kib = _watch(process, progress, limits)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        text = (scratch / "log").read_bytes()[-(1 << 20) :].decode(errors="replace")
        inputs, _running_s, data = progress.look()
        reached = re.findall(r"\bcov: (\d+)", text)
        if found is None and not inputs and seeds(target):
            found = "it got no input"
        return Outcome(
            target=target,
            engine=engine,
            inputs=inputs,
            seconds=time.monotonic() - started_s,
            coverage=int(reached[-1]) if reached else None,
            peak_mib=peak_kib >> 10,
            found=found,
            details=_last_traceback(text) if found else "",
            kept=_keep(keep, target, data) if found else None,
        )


def _watch(
    process: "subprocess.Popen[bytes]", progress: Progress, limits: Limits
) -> tuple[str | None, int]:
    """What went wrong, None for nothing; and the most memory that was seen, in KiB."""
    deadline_s = time.monotonic() + limits.seconds + limits.hang_s + _STARTING_S
    peak_kib = 0
    while process.poll() is None:
        peak_kib = max(peak_kib, own_peak_bytes(process.pid) >> 10)
        running_s = progress.look()[1] or 0.0
        if running_s > limits.hang_s:
            process.send_signal(signal.SIGUSR2)
            time.sleep(_LOOK_S)
            return f"hang: {running_s:.0f} s with one input", peak_kib
        if time.monotonic() > deadline_s:
            return "it does not end", peak_kib
        if peak_kib >> 10 > limits.memory_mib:
            return f"memory: {peak_kib >> 10} MiB", peak_kib
        time.sleep(_LOOK_S)
    if process.returncode == ENOUGH:
        return None, peak_kib
    return f"it ended with {process.returncode}", peak_kib


def _last_traceback(text: str) -> str:
    head, mark, tail = text.rpartition("Traceback (most recent call last)")
    if not mark:
        head, mark, tail = text.rpartition("(most recent call first)")
    return mark + tail if mark else head[-2000:] + tail[-2000:]


def _keep(folder: Path, target: str, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{target}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path
