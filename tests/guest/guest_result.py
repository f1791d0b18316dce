# SPDX-License-Identifier: Apache-2.0
"""What came back from a Linux guest, as tests ask for it."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipitrace.abi.storm import FILE, RECEIPT, SEND
from lab.guest.boot import Guest


@dataclass(frozen=True)
class Records:
    """A storm file, taken apart."""

    header: np.void
    sends: NDArray[np.void]
    receipts: tuple[NDArray[np.void], ...]


@dataclass(frozen=True)
class GuestResult:
    """What storms.sh left.

    Attributes:
        guest: what was booted.
        output: the folder of its result.
    """

    guest: Guest
    output: Path

    def text(self, name: str) -> str:
        return (self.output / name).read_text(errors="replace")

    def exit_code(self, name: str) -> int:
        return int(self.text(f"{name}.status"))

    def error(self, name: str) -> str:
        """Its one line on stderr, with nothing on stdout."""
        assert (self.output / f"{name}.out").stat().st_size == 0, name
        said = self.text(f"{name}.err").splitlines()
        assert len(said) == 1, said
        assert said[0].startswith("ipitrace-storm: "), said
        return said[0].removeprefix("ipitrace-storm: ")

    @cached_property
    def status(self) -> Any:
        return json.loads(self.text("status.out"))

    def records(self, name: str) -> Records:
        assert self.text(f"{name}.err") == "", name
        assert self.exit_code(name) == 0, name
        data = (self.output / f"{name}.out").read_bytes()
        header = np.frombuffer(data, FILE, 1)[0]
        at = int(header["header_bytes"])
        sends = np.frombuffer(data, SEND, int(header["n_sends"]), at)
        at += sends.nbytes
        counts = np.frombuffer(data, "<u8", int(header["n_vcpus"]), at)
        at += counts.nbytes
        receipts = []
        for count in counts:
            receipts.append(np.frombuffer(data, RECEIPT, int(count), at))
            at += receipts[-1].nbytes
        assert at == len(data)
        return Records(header, sends, tuple(receipts))
