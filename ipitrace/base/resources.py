# SPDX-License-Identifier: Apache-2.0
"""Paths of the files that are not Python: in the installed package, or in the checkout."""

from pathlib import Path

from ipitrace.base.errors import HostError

_PACKAGE = Path(__file__).resolve().parents[1]


def import_folder() -> Path:
    """The folder through which Python finds the package."""
    return _PACKAGE.parent


def _data_dir(name: str, checkout_path: str | None = None) -> Path:
    """`ipitrace/_data/<name>` of a wheel, or the checkout's folder for an editable install.

    Raises HostError if neither exists.
    """
    for path in (_PACKAGE / "_data" / name, _PACKAGE.parent / (checkout_path or name)):
        if path.is_dir():
            return path
    raise HostError(
        f"The installation lacks its {name} files.",
        "Reinstall ipitrace from a wheel, or run it from a complete checkout.",
    )


def bpf_dir() -> Path:
    """The BPF programs and the header that they share with user space."""
    return _data_dir("bpf")


def guest_tools_dir() -> Path:
    """The guest payloads and the header that they share with user space."""
    return _data_dir("guest-tools")


def example_dir() -> Path:
    """A recording of a real run."""
    return _data_dir("example", "tests/data/recordings/micro-pvm-2")
