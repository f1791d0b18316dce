# SPDX-License-Identifier: Apache-2.0
"""Programs that ipitrace starts, itself among them: which file that is, and what it inherits."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from ipitrace.base.errors import HostError
from ipitrace.base.search_path import (
    others_may_write,
    safe_entries,
)

_PROGRAM: Final = """\
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from ipitrace.cli import main
main()
"""


def find_program(name: str) -> str:
    """The absolute path of a program that PATH leads to.

    Relative entries of PATH, the empty one among them, and folders that others may write are
    passed over.

    Raises:
        HostError: there is none.
    """
    if Path(name).is_absolute():
        return name
    found = shutil.which(name, path=_safe_path())
    if found is None or others_may_write(found):
        raise HostError(
            f"The program {name} is not in a folder of PATH that others cannot write.",
            "Install it, or put its folder into PATH as an absolute path.",
        )
    return found


def clean_environment() -> dict[str, str]:
    """This process's variables for a program that it starts; PATH as find_program() takes it."""
    return {**os.environ, "PATH": _safe_path()}


def own_command(*arguments: str) -> list[str]:
    """How to start this very ipitrace again.

    The new one is isolated (python -I): it heeds neither the current folder nor PYTHON...
    variables, and looks for packages where this one does, but for folders that others may
    write.

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
    """PATH without entries through which others' programs would be found."""
    entries = os.environ.get("PATH", os.defpath).split(os.pathsep)
    safe = [e for e in entries if Path(e).is_absolute() and not others_may_write(e)]
    return os.pathsep.join(dict.fromkeys(safe))
