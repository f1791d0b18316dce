# SPDX-License-Identifier: Apache-2.0
"""Where a test runs ipitrace, and what must hold of what it finds there afterwards."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from host_state import Watched, watched

from ipitrace.recording.reader import read_run
from ipitrace.recording.result import RunResult


@dataclass(frozen=True)
class Place:
    """A current folder, and a folder for temporary files."""

    cwd: Path
    temporary: Path

    @contextmanager
    def starts(self, *arguments: object, through: Sequence[str] = ()) -> Iterator[Watched]:
        """`ipitrace ARGUMENTS` here, started by the command `through`."""
        environment = {"TMPDIR": str(self.temporary)}
        with watched(*arguments, cwd=self.cwd, through=through, environment=environment) as program:
            yield program

    def names(self) -> set[str]:
        return {path.name for path in self.cwd.iterdir()}


def whole(directory: Path) -> RunResult:
    """The run of a recording whose files are all there and as they were written."""
    for line in (directory / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((directory / name).read_bytes()).hexdigest() == digest, name
    return read_run(directory)


def assert_told(program: Watched, *codes: int) -> None:
    """It ended with one of these codes and said why: a sentence, no traceback."""
    assert program.process.returncode in codes, (program.process.returncode, program.complained)
    assert "Traceback" not in program.complained
    said = [line for line in program.complained.splitlines() if line.startswith("ipitrace: ")]
    assert said, program.complained
