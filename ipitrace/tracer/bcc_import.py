# SPDX-License-Identifier: Apache-2.0
"""Find the distribution's bcc from any Python interpreter.

bcc is pure Python on top of libbcc.so. The distribution's copy therefore works in any
interpreter: in a virtual environment, or in a newer Python than the system's.
PyPI's package of the same name is an unrelated lattice library without `BPF`.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ipitrace.base.errors import HostError

_HINT = (
    "Install your distribution's bcc: python3-bpfcc (Debian, Ubuntu), python3-bcc (Fedora, RHEL,"
    " openSUSE) or python-bcc (Arch). PyPI's bcc is an unrelated package."
)


def _distribution_dirs(root: Path) -> Iterator[Path]:
    """The folders of the distributions' Python packages, the newest interpreter first."""
    yield root / "usr/lib/python3/dist-packages"
    for pattern in ("usr/lib/python3*/site-packages", "usr/lib64/python3*/site-packages"):
        yield from sorted(root.glob(pattern), reverse=True)


def _forget_bcc() -> None:
    for name in [name for name in sys.modules if name == "bcc" or name.startswith("bcc.")]:
        del sys.modules[name]


def _import_from(directory: Path) -> ModuleType | None:
    """Import `directory`/bcc as the module bcc; None if it does not exist."""
    package = directory / "bcc"
    source = package / "__init__.py"
    if not source.is_file():
        return None
    spec = importlib.util.spec_from_file_location(
        "bcc", source, submodule_search_locations=[str(package)]
    )
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    spec.loader.exec_module(module)
    return module


def import_bcc(root: Path = Path("/")) -> ModuleType:
    """Import the bcc package that has `BPF`.

    Raises HostError if it is not installed, or if libbcc cannot be loaded.
    """
    broken: Exception | None = None
    try:
        plain: ModuleType | None = importlib.import_module("bcc")
    except ImportError:
        plain = None
    except OSError as error:  # libbcc.so is missing or unusable
        plain, broken = None, error
    if plain is not None and hasattr(plain, "BPF"):
        return plain
    for directory in _distribution_dirs(root):
        _forget_bcc()
        try:
            module = _import_from(directory)
        except (ImportError, OSError) as error:
            broken = error
            continue
        if module is not None and hasattr(module, "BPF"):
            return module
    _forget_bcc()
    if broken is not None:
        raise HostError(f"bcc is installed but cannot be loaded: {broken}.", _HINT)
    raise HostError("The BPF compiler bcc is not installed.", _HINT)
