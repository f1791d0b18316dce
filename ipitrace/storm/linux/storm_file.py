# SPDX-License-Identifier: Apache-2.0
"""Read the output of the helper in a Linux guest: struct storm_file in storm_abi.h."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ipitrace.abi.storm import ABI_VERSION, FILE, FILE_MAGIC, RECEIPT, SEND, StormState
from ipitrace.base.errors import HostError, MeasurementError
from ipitrace.storm import limits
from ipitrace.storm.driver import Storm
from ipitrace.storm.guest_json import shown
from ipitrace.words.scenarios import Pattern, Route, routes_of

_COUNT = np.dtype("<u8")
_MIXED: Final = (
    "Its output must not be mixed with other output: check the login's start-up files, and "
    "'ipitrace guest status'."
)


@dataclass(frozen=True)
class Asked:
    """The request to the guest; its file may not contain more.

    Attributes:
        sends: the number of sends of each sender, including the warm-up.
        targets: the CPUs that handle IPIs.
        n_vcpus: CPUs of the guest.
        pattern: of the scenario.
    """

    sends: int
    targets: Collection[int]
    n_vcpus: int
    pattern: Pattern = Pattern.UNICAST

    @property
    def routes(self) -> tuple[Route, ...]:
        """The senders, and the targets of each."""
        return routes_of(self.pattern, self.targets)


@dataclass(frozen=True)
class StormFile:
    """One parsed file.

    Attributes:
        header: one abi.FILE.
        sends: dtype abi.SEND, including the warm-up.
        receipts: each vCPU's, dtype abi.RECEIPT, likewise.
        routes: the senders, and the targets of each.
    """

    header: np.void
    sends: NDArray[np.void]
    receipts: tuple[NDArray[np.void], ...]
    routes: tuple[Route, ...]

    @classmethod
    def parse(cls, data: bytes, asked: Asked) -> "StormFile":
        """Parse a file.

        Raises:
            HostError: it is not a storm file, has another version, is cut off, or contains
                records that were not requested.
        """
        if not data.startswith(FILE_MAGIC):
            raise HostError(
                f"The guest's ipitrace-storm returned no records but {shown(data)}.", _MIXED
            )
        header = np.frombuffer(data[: FILE.itemsize].ljust(FILE.itemsize, b"\0"), FILE, 1)[0]
        if header["abi_version"] != ABI_VERSION:
            raise other_version(int(header["abi_version"]))
        header_bytes = _within(header, "header_bytes", FILE.itemsize, limits.HEADER_BYTES)
        n_sends = _within(header, "n_sends", 0, asked.sends * len(asked.routes))
        n_vcpus = _within(header, "n_vcpus", 1, asked.n_vcpus)
        _within(header, "vector", *limits.VECTORS)
        if header["tsc_khz"]:
            _within(header, "tsc_khz", *limits.TSC_KHZ)
        reader = _Reader(data, header_bytes)
        sends = reader.read(SEND, n_sends)
        counts = [int(n) for n in reader.read(_COUNT, n_vcpus)]
        for cpu, n in enumerate(counts):
            if n > (asked.sends if cpu in asked.targets else 0):
                raise _out_of_range(f"n_receipts of CPU {cpu}", n)
        receipts = tuple(reader.read(RECEIPT, n) for n in counts)
        reader.end()
        return cls(header, sends, receipts, asked.routes)

    def storm(self, warmup: int, n_vcpus: int) -> Storm:
        """The measured part, without the data that only the host has.

        Args:
            warmup: sends of each sender that are left out.
            n_vcpus: of the guest; the file ends with the last CPU that takes part.

        Raises:
            MeasurementError: the storm did not end normally.
        """
        status = self.header["status"]
        state = int(status["state"])
        logs = [self.sends[self.sends["sender"] == route.sender] for route in self.routes]
        if state != StormState.DONE or any(len(log) <= warmup for log in logs):
            raise MeasurementError(
                f"The guest gave up after {int(status['sent'])} sends: "
                f"{int(status['incomplete'])} IPIs were not acknowledged in time.",
                "IPIs are lost, or the vCPUs get no CPU time: check the host's load.",
            )
        receipts = [np.zeros(0, RECEIPT)] * n_vcpus
        for route, log in zip(self.routes, logs, strict=True):
            first_tsc = log["send_tsc"][warmup:].min()
            for target in set(route.targets) & set(range(len(self.receipts))):
                own = self.receipts[target]
                receipts[target] = own[own["handler_tsc"] >= first_tsc]
        entries = sum(map(len, self.receipts))
        return Storm(
            sends=np.concatenate([log[warmup:] for log in logs]),
            receipts=tuple(receipts),
            handled=tuple(map(len, receipts)),
            incomplete=int(status["incomplete"]),
            spurious=int(status["spurious"]),
            start=None,
            end=None,
            tsc_offset=None,
            tsc_khz=int(self.header["tsc_khz"]) or None,
            vector=int(self.header["vector"]),
            as_asked=int(status["as_asked"]) / entries if entries else None,
        )


class _Reader:
    """Reads a file sequentially."""

    def __init__(self, data: bytes, offset: int) -> None:
        self._data = data
        self._offset = offset

    def read(self, dtype: np.dtype[np.void] | np.dtype[np.uint64], n: int) -> NDArray[np.void]:
        end = self._offset + n * dtype.itemsize
        if end > len(self._data):
            raise HostError(
                f"The guest's records are cut off: {len(self._data)} bytes were received, but at "
                f"least {end} were announced.",
                "Check the connection and the guest, and run it again.",
            )
        records: NDArray[np.void] = np.frombuffer(self._data, dtype, n, self._offset)
        self._offset = end
        return records

    def end(self) -> None:
        if self._offset != len(self._data):
            raise HostError(
                f"The guest's records are followed by {len(self._data) - self._offset} unknown "
                "bytes.",
                _MIXED,
            )


def _within(header: np.void, name: str, least: int, most: int) -> int:
    value = int(header[name])
    if not least <= value <= most:
        raise _out_of_range(name, value)
    return value


def _out_of_range(name: str, value: int) -> HostError:
    return HostError(
        f"The guest's records do not match the request: {name} is {value}.",
        "Install the ipitrace_storm that belongs to this ipitrace: ipitrace guest install ...",
    )


def other_version(theirs: int) -> HostError:
    """The error for a guest whose module or helper has another version."""
    return HostError(
        f"The guest's ipitrace-storm has version {theirs} of the storm interface, "
        f"this ipitrace has version {ABI_VERSION}.",
        "Install the one that belongs to it: ipitrace guest install --vm ... --via ...",
    )
