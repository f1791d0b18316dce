# SPDX-License-Identifier: Apache-2.0
"""The command line; the one place where errors become text and exit codes.

What can fail to be imported is imported inside of main(), where it is told in a sentence.
"""

import contextlib
import os
import sys
from typing import Final

from ipitrace import defects, signals
from ipitrace.console import settle, tell
from ipitrace.errors import ExitCode, IpitraceError

_MOST_CHARS: Final = 4000  # of a message, whatever a guest put into it
_WORLD_WRITABLE: Final = 0o002
_COMPLETION_VARIABLE: Final = "_IPITRACE_COMPLETE"  # click's, for shells


def main() -> None:
    """Run the command line and exit as errors.ExitCode says."""
    code: int = ExitCode.DEFECT
    try:
        _prepare_process()
        code = _run()
        if defects.threads_failed():
            code = code or ExitCode.DEFECT
    except IpitraceError as error:
        code = error.exit_code
        if code != ExitCode.OK:
            _tell(error.message, error.hint)
            defects.tell_traceback(error)
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
        _tell("Interrupted.", "")
    except BaseException as error:  # noqa: BLE001 - whatever it is, it becomes a sentence
        told = defects.explain(error)
        code = told.exit_code
        _tell(told.message, told.hint)
        defects.tell_traceback(error)
    settle()
    sys.exit(code)


def _prepare_process() -> None:
    """What holds for every command, whoever starts it and how."""
    _open_standard_streams()
    os.umask(os.umask(0) | _WORLD_WRITABLE)
    defects.watch_threads()
    signals.install()


def _open_standard_streams() -> None:
    """No file of ours gets the number of a stream that was closed (`>&-`), and its output.

    Writing to it fails as if it were closed still; /dev/null is open for reading.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # gets the lowest number that is free
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def _run() -> int:
    import click  # noqa: PLC0415 - see above

    from ipitrace.commands.group import ipitrace_group  # noqa: PLC0415

    if _COMPLETION_VARIABLE in os.environ:
        with contextlib.suppress(SystemExit):
            ipitrace_group.main(prog_name="ipitrace")
        return ExitCode.OK
    try:
        # Not click's main(): it takes every EPIPE for a reader of standard output that left,
        # and every EOFError for Ctrl-C.
        with ipitrace_group.make_context("ipitrace", sys.argv[1:]) as context:
            return ipitrace_group.invoke(context) or ExitCode.OK
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        where = getattr(error, "ctx", None)
        path = where.command_path if where else "ipitrace"
        _tell(error.format_message(), f"See '{path} --help'.")
        return ExitCode.USAGE


def _tell(message: str, hint: str) -> None:
    lines = _sentence(message[:_MOST_CHARS]).splitlines() or ["No reason is known."]
    if hint:
        lines += _sentence(hint[:_MOST_CHARS]).splitlines()
    # Only the first line stands at the margin: no text of others can look like one of ours.
    tell("\n          ".join(["ipitrace: " + lines[0], *lines[1:]]))


def _sentence(text: str) -> str:
    """With a capital and an end; what the user typed, and names, stay as they are."""
    text = text.strip()
    first = text.partition(" ")[0]
    if first.isalpha() and first.islower() and first not in sys.argv:
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "?", "!", ":")) else f"{text}."
