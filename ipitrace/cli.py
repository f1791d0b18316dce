# SPDX-License-Identifier: Apache-2.0
"""The command line: turns every error into text and an exit code.

Imports that can fail are inside main(), which reports a failure as a sentence.
"""

import contextlib
import os
import resource
import sys
from collections.abc import Sequence
from typing import Final

from ipitrace.base import defects, signals
from ipitrace.base.console import reader_left, settle, tell
from ipitrace.base.errors import ExitCode, HostError

_MOST_CHARS: Final = 4000  # of a message, which may contain text from a guest
_ALIKE: Final = 3  # leading characters that a suggestion has in common with what was typed
_WORLD_WRITABLE: Final = 0o002
_COMPLETION_VARIABLE: Final = "_IPITRACE_COMPLETE"  # click's, for shells


def main() -> None:
    """Run the command line and exit as errors.ExitCode says."""
    try:
        code = _outcome()
    except KeyboardInterrupt:  # a second interruption, while the first was reported
        code = ExitCode.INTERRUPTED
    signals.ignore()
    # CPython records a KeyboardInterrupt that leaves code compiled from a string, as dataclasses
    # are, and then ends by SIGINT at exit although the exception was caught. Running any such
    # code clears the record (run_eval_code_obj() in Python/pythonrun.c).
    exec("")  # noqa: S102
    settle()
    sys.exit(code)


def _outcome() -> int:
    try:
        _prepare_process()
        code = _run()
        return code or (ExitCode.DEFECT if defects.threads_failed() else ExitCode.OK)
    except KeyboardInterrupt:
        _tell("Interrupted.", "")
        return ExitCode.INTERRUPTED
    except BaseException as error:  # noqa: BLE001 - every error becomes a sentence
        if isinstance(error, BrokenPipeError) and reader_left():  # while click printed its help
            return ExitCode.OK
        explained = defects.explain(error)
        if explained.exit_code != ExitCode.OK:
            _tell(explained.message, explained.hint)
            defects.tell_traceback(error)
        return explained.exit_code


def _prepare_process() -> None:
    """Set up the process in the same way for every command."""
    _open_standard_streams()
    os.umask(os.umask(0) | _WORLD_WRITABLE)
    defects.watch_threads()
    _require_address_space()
    signals.install()


def _require_address_space() -> None:
    """Check that `ulimit -v` suffices: without, OpenBLAS below numpy hangs or exits with code 1.

    OpenBLAS allocates buffers for each CPU when it is loaded, for at most 64 as numpy builds it.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    needed_mib = 1024 + 64 * min(os.cpu_count() or 1, 64)
    if limit != resource.RLIM_INFINITY and limit < needed_mib << 20:
        raise HostError(
            f"This process may use {limit >> 20} MiB of address space; it needs {needed_mib}.",
            "Raise 'ulimit -v'.",
        )


def _open_standard_streams() -> None:
    """Open closed standard streams (`>&-`), so that no other file gets their numbers and output.

    Writing to such a stream still fails: /dev/null is opened for reading.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # gets the lowest free number
            os.set_inheritable(number, True)  # noqa: FBT003 - for child processes, too
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
        # Not click's main(): it treats every EPIPE as a closed standard output, and every
        # EOFError as Ctrl-C.
        with ipitrace_group.make_context("ipitrace", sys.argv[1:]) as context:
            return ipitrace_group.invoke(context) or ExitCode.OK
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        where = getattr(error, "ctx", None)
        path = where.command_path if where else "ipitrace"
        known = getattr(error, "possibilities", None)  # instead of an unknown option or command
        message = error.message if known else error.format_message()
        _tell(message, f"{_guess(message, known or ())}See '{path} --help'.")
        return ExitCode.USAGE


def _guess(message: str, names: Sequence[str]) -> str:
    """The suggestions of click that begin like the typed word, which the message quotes."""
    close = [name for name in names if f"'{name[:_ALIKE]}" in message]
    return f"Did you mean {' or '.join(close)}? " if close else ""


def _tell(message: str, hint: str) -> None:
    lines = _sentence(message[:_MOST_CHARS]).split("\n")
    if hint:
        lines += _sentence(hint[:_MOST_CHARS]).split("\n")
    # Only the first line is at the margin: text from others cannot look like a message.
    tell("\n          ".join(["ipitrace: " + lines[0], *lines[1:]]))


def _sentence(text: str) -> str:
    """Add a capital letter and a full stop; typed words and names are not changed."""
    text = text.strip()
    first = text.partition(" ")[0]
    if first.isalpha() and first.islower() and first not in sys.argv:
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "?", "!", ":")) else f"{text}."
