# SPDX-License-Identifier: Apache-2.0
"""One line of the doctor's report."""

from dataclasses import asdict, dataclass
from typing import Literal

from ipitrace.vm import VirtualMachine

Status = Literal["ok", "warn", "missing", "unknown"]


@dataclass(frozen=True)
class Check:
    """What was looked at, what was found, and what a person can do about it.

    missing: `ipitrace run` cannot trace here. warn: it can, and the numbers suffer, or some
    of them cannot be had. unknown: nothing here tells.
    """

    name: str
    status: Status
    says: str
    todo: str = ""
    """The command to run, or where to look; "" when there is nothing to do."""


@dataclass(frozen=True)
class Examination:
    """All lines, in order, for the host alone or with one VM in mind."""

    checks: tuple[Check, ...]
    vm: VirtualMachine | None

    @property
    def can_run(self) -> bool:
        """Whether nothing is missing that `ipitrace run` needs."""
        return all(check.status != "missing" for check in self.checks)

    def to_dict(self) -> dict[str, object]:
        """The report as types that json accepts."""
        return {
            "can_run": self.can_run,
            "vm": None if self.vm is None else self.vm.to_dict(),
            "checks": [asdict(check) for check in self.checks],
        }
