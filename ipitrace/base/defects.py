# SPDX-License-Identifier: Apache-2.0
"""Unexpected errors: one sentence on standard error, and a traceback on request.

Python's default, a traceback and exit code 1, would be read as a regression by a script.
"""

import errno
import os
import sys
import threading
import traceback
from pathlib import PurePath
from typing import Final

from ipitrace.base import signals
from ipitrace.base.console import tell
from ipitrace.base.errors import ExitCode, HostError, IpitraceError, UsageError
from ipitrace.base.foreign import plain

TRACEBACK_VARIABLE: Final = "IPITRACE_TRACEBACK"
_MOST_CHARS: Final = 300
_MOST_NAME: Final = 80
_PACKAGE: Final = PurePath(__file__).parents[1]
_EXHAUSTED: Final = {
    errno.EMFILE: ("This process may open no more files", "Raise 'ulimit -n'."),
    errno.ENFILE: ("This host can open no more files", "See /proc/sys/fs/file-nr."),
    errno.ENOMEM: ("There is not enough memory", "Free some, or raise 'ulimit -v'."),
    errno.ENOSPC: ("There is no space left", "Free some."),
    errno.EDQUOT: ("The disk quota is used up", "Free some space."),
}


class DefectError(IpitraceError):
    """An error inside ipitrace itself. Only Python's error text is known."""

    exit_code = ExitCode.DEFECT


_in_threads: list[BaseException] = []


def explain(error: BaseException) -> IpitraceError:
    """Any exception as an IpitraceError with a message and a hint."""
    if isinstance(error, IpitraceError):
        return error
    if isinstance(error, MemoryError):
        return HostError("There is not enough memory.", _EXHAUSTED[errno.ENOMEM][1])
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        what, hint = _EXHAUSTED[error.errno]
        where = f" ({error.filename})" if error.filename else ""
        return HostError(f"{what}{where}.", hint)
    if isinstance(error, OSError) and error.errno in {errno.ENAMETOOLONG, errno.ELOOP}:
        name = plain(str(error.filename), _MOST_NAME)
        return UsageError(f"{error.strerror}: {name}.", "Give another path.")
    if isinstance(error, ImportError) and not _is_ours(error.name):
        memory = "cannot allocate memory" in str(error).lower() or "failed to map" in str(error)
        return HostError(
            f"The Python module {error.name or '?'} cannot be loaded: {_first_line(error)}.",
            _EXHAUSTED[errno.ENOMEM][1] if memory else "Reinstall ipitrace with its dependencies.",
        )
    return DefectError(
        f"This is a defect of ipitrace: {type(error).__name__}{_place(error)}: "
        f"{_first_line(error)}.",
        f"Please report it, with the output of a run with {TRACEBACK_VARIABLE}=1 set.",
    )


def tell_traceback(error: BaseException) -> None:
    """Print the error's traceback if TRACEBACK_VARIABLE is set."""
    if os.environ.get(TRACEBACK_VARIABLE, "0") not in {"", "0"}:
        tell("".join(traceback.format_exception(error)))


def watch_threads() -> None:
    """Report an error that ends a thread or an object's finaliser in one sentence, too."""
    threading.excepthook = _on_thread
    sys.unraisablehook = _on_unraisable


def threads_failed() -> bool:
    """Whether an unexpected error ended a thread."""
    return bool(_in_threads)


def _on_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is None or isinstance(args.exc_value, SystemExit):
        return
    _in_threads.append(args.exc_value)
    _report(args.exc_value)


def _on_unraisable(args: "sys.UnraisableHookArgs") -> None:
    if isinstance(args.exc_value, KeyboardInterrupt):
        signals.send_again()
    elif args.exc_value is not None:
        _report(args.exc_value)


def _report(error: BaseException) -> None:
    tell(f"ipitrace: {explain(error).message}")
    tell_traceback(error)


def _is_ours(module: str | None) -> bool:
    return (module or "").partition(".")[0] == "ipitrace"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or ["no reason given"]
    return plain(lines[0].rstrip("."), _MOST_CHARS)


def _place(error: BaseException) -> str:
    """The place in ipitrace's code that raised the error: " in vm/apic.py, line 60"."""
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = PurePath(frame.f_code.co_filename)
        if path.is_relative_to(_PACKAGE):
            found = f" in {path.relative_to(_PACKAGE)}, line {line}"
    return found
