# SPDX-License-Identifier: Apache-2.0
"""Every way a command can end badly: one sentence, what to do next, one exit code."""

from enum import IntEnum
from typing import Final

NOTHING_WRITTEN: Final = "Nothing was finished until then, and nothing was written."
"""The hint of an interruption that leaves no recording."""


class ExitCode(IntEnum):
    """Exit codes of every ipitrace command; scripts and CI rely on them."""

    OK = 0
    REGRESSION = 1
    USAGE = 2
    ENVIRONMENT = 3
    UNTRUSTWORTHY = 4
    DEFECT = 70  # EX_SOFTWARE of sysexits.h: an error inside ipitrace itself
    INTERRUPTED = 130


class IpitraceError(Exception):
    """What happened (`message`), what to do next (`hint`), and the exit code it means."""

    exit_code: ExitCode = ExitCode.ENVIRONMENT

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(IpitraceError):
    """The request itself cannot be carried out anywhere: a bad option or value."""

    exit_code = ExitCode.USAGE


class HostError(IpitraceError):
    """This host cannot do what was asked: no /dev/kvm, no BPF, no permission."""

    exit_code = ExitCode.ENVIRONMENT


class MeasurementError(IpitraceError):
    """It ran, but what it measured cannot be trusted: a hung guest, lost events."""

    exit_code = ExitCode.UNTRUSTWORTHY


class ReaderLeftError(IpitraceError):
    """Whoever read our standard output has left; that is no failure, and nobody is told."""

    exit_code = ExitCode.OK

    def __init__(self) -> None:
        super().__init__("The reader of standard output has left.", "")


class InterruptedRunError(IpitraceError):
    """The person stopped the run; what was finished until then is kept, if anything was."""

    exit_code = ExitCode.INTERRUPTED
