# SPDX-License-Identifier: Apache-2.0
"""Makes recordings that are meant to harm, and runs `report` and `compare` on them.

Each command runs by itself, so that its memory can be measured.
"""

import hashlib
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner

from ipitrace.base.errors import ExitCode, UsageError
from ipitrace.commands.compare import compare
from ipitrace.commands.report import report
from ipitrace.recording.writer import CHECKSUM_FILE, RUN_FILE

MOST_MIB = 512
PLENTY_S = 60
MANY_ROWS = 20_000_000
LONG_TEXT = 300 << 20
RECORDED = Path(__file__).parents[0] / "data/recordings/amd-tcg"


@dataclass(frozen=True)
class Done:
    code: int
    error: str
    peak_mib: int


def ipitrace(*words: object) -> Done:
    """Run the command; its exit code, and the most memory it or its child had at a time."""
    program = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, capture_output=True)\n"
        "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)\n"
        "sys.stderr.buffer.write(done.stderr)\n"
    )
    command = [sys.executable, "-m", "ipitrace", *map(str, words)]
    done = subprocess.run(
        [sys.executable, "-c", program, *command],
        capture_output=True,
        text=True,
        check=True,
        timeout=PLENTY_S,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)),
    )
    code, peak_mib = map(int, done.stdout.split())
    return Done(code, done.stderr, peak_mib)


def refused(*words: object) -> str:
    """What the command says, in one sentence and a hint, with exit code 2."""
    done = ipitrace(*words)
    assert done.code == ExitCode.USAGE, done
    assert len(done.error.splitlines()) == 2, done.error
    assert len(done.error) < 1000
    assert done.peak_mib < MOST_MIB
    return done.error


def said_here(*words: object) -> str:
    """As refused(), in this process: for what is too small to need much."""
    command = {"report": report, "compare": compare}[str(words[0])]
    error = CliRunner().invoke(command, list(map(str, words[1:]))).exception
    assert isinstance(error, UsageError), error
    assert "\n" not in error.message
    assert len(error.message) < 1000
    return error.message


def seal(directory: Path) -> None:
    paths = [path for path in sorted(directory.iterdir()) if path.name != CHECKSUM_FILE]
    digests = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in paths]
    (directory / CHECKSUM_FILE).write_text("".join(digests))


def put_spans(recording: Path, table: pa.Table, **how: Any) -> Path:
    """Replace the spans by others, and have everything else agree."""
    path = recording / "spans.parquet"
    pq.write_table(table, path, compression="zstd", **how)
    change_run(recording, lambda run: run["tables"]["spans"].update(rows=len(table)))
    return path


def change_run(recording: Path, change: Callable[[Any], object]) -> None:
    run = json.loads((recording / RUN_FILE).read_text())
    change(run)
    (recording / RUN_FILE).write_text(json.dumps(run))
    seal(recording)
