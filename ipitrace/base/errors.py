# SPDX-License-Identifier: Apache-2.0
"""All errors of a command. Each has a sentence, a hint on what to do next and an exit code."""

from enum import IntEnum
from typing import Final

NOTHING_WRITTEN: Final = "Nothing was completed, and no recording was written."
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
    """What happened (`message`), what to do next (`hint`), and the exit code."""

    exit_code: ExitCode = ExitCode.ENVIRONMENT

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(IpitraceError):
    """The request is invalid on every host: a bad option or value."""

    exit_code = ExitCode.USAGE


class HostError(IpitraceError):
    """This host does not support the request: no /dev/kvm, no BPF, no permission."""

    exit_code = ExitCode.ENVIRONMENT


class MeasurementError(IpitraceError):
    """The measurement ran, but its result cannot be trusted: a hung guest, lost events."""

    exit_code = ExitCode.UNTRUSTWORTHY


class ReaderLeftError(IpitraceError):
    """The reader of standard output has closed it. This is not a failure and is not reported."""

    exit_code = ExitCode.OK

    def __init__(self) -> None:
        super().__init__("The reader has closed standard output.", "")


class InterruptedRunError(IpitraceError):
    """The user stopped the run. Completed repetitions, if there are any, are kept."""

    exit_code = ExitCode.INTERRUPTED
