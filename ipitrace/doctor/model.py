# SPDX-License-Identifier: Apache-2.0
"""One line of the doctor's report."""

from dataclasses import asdict, dataclass
from typing import Literal

from ipitrace.vm import VirtualMachine

Status = Literal["ok", "warn", "missing", "unknown"]


@dataclass(frozen=True)
class Check:
    """The name of a check, what it found, and what the user can do about it.

    missing: `ipitrace run` cannot trace on this host. warn: it can, but the figures are less
    accurate, or some of them are not available. unknown: the host does not show it.
    """

    name: str
    status: Status
    says: str
    todo: str = ""
    """The command to run, or the place to check; "" if there is nothing to do."""


@dataclass(frozen=True)
class Examination:
    """All lines in order, for the host alone or for the host and one VM."""

    checks: tuple[Check, ...]
    vm: VirtualMachine | None

    @property
    def can_run(self) -> bool:
        """Whether the host has everything that `ipitrace run` needs."""
        return all(check.status != "missing" for check in self.checks)

    def to_dict(self) -> dict[str, object]:
        """The report as types that json accepts."""
        return {
            "can_run": self.can_run,
            "vm": None if self.vm is None else self.vm.to_dict(),
            "checks": [asdict(check) for check in self.checks],
        }
