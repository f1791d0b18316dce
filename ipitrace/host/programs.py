# SPDX-License-Identifier: Apache-2.0
"""Programs that ipitrace starts, including itself: their paths and environments."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from ipitrace.base.errors import HostError
from ipitrace.base.search_path import others_may_write, safe_entries

_PROGRAM: Final = """\
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from ipitrace.cli import main
main()
"""


def find_program(name: str) -> str:
    """The absolute path of a program, found through PATH.

    Relative and empty entries of PATH, and folders that other users may write to, are skipped.

    Raises:
        HostError: there is no such program.
    """
    if Path(name).is_absolute():
        return name
    found = shutil.which(name, path=_safe_path())
    if found is None or others_may_write(found):
        raise HostError(
            f"The program {name} was not found in a folder of PATH that others cannot write to.",
            "Install it, or add its folder to PATH as an absolute path.",
        )
    return found


def clean_environment() -> dict[str, str]:
    """The environment for a program that ipitrace starts; PATH is filtered as in find_program()."""
    return {**os.environ, "PATH": _safe_path()}


def own_command(*arguments: str) -> list[str]:
    """The command that starts this installation of ipitrace again.

    The new process is isolated (python -I): it ignores the current folder and the PYTHON...
    variables. It uses this process's import path without folders that other users may write to.

    Raises:
        HostError: the interpreter does not know its own path.
    """
    if not sys.executable:
        raise HostError(
            "The Python interpreter that runs ipitrace does not know its own path.",
            "Start ipitrace by an absolute path.",
        )
    writing = ["-B"] if sys.dont_write_bytecode else []
    path = json.dumps(safe_entries(sys.path))
    return [sys.executable, "-I", *writing, "-c", _PROGRAM, path, *arguments]


def _safe_path() -> str:
    """PATH without relative entries and without folders that other users may write to."""
    entries = os.environ.get("PATH", os.defpath).split(os.pathsep)
    safe = [e for e in entries if Path(e).is_absolute() and not others_may_write(e)]
    return os.pathsep.join(dict.fromkeys(safe))
