# SPDX-License-Identifier: Apache-2.0
"""/proc and /sys trees, made up or of captured hosts."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from ipitrace.host.files import HostFiles

DATA = Path(__file__).parent / "host" / "data"


@pytest.fixture
def make_files(tmp_path: Path) -> Callable[[Mapping[str, str]], HostFiles]:
    """A tree from path to text; "-> x" makes a (dangling) symbolic link to x."""

    def make(contents: Mapping[str, str]) -> HostFiles:
        for path, text in contents.items():
            at = tmp_path / path.lstrip("/")
            at.parent.mkdir(parents=True, exist_ok=True)
            if text.startswith("-> "):
                at.symlink_to(text.removeprefix("-> "))
            else:
                at.write_text(text)
        return HostFiles(tmp_path)

    return make


@pytest.fixture
def captured(make_files: Callable[[Mapping[str, str]], HostFiles]) -> Callable[[str], HostFiles]:
    """The tree of a captured host: data/NAME.txt as `tail -n +1 FILE...` prints it."""

    def unpack(name: str) -> HostFiles:
        text = (DATA / f"{name}.txt").read_text()
        _, *pieces = re.split(r"(?m)^==> (\S+) <==\n", text)
        return make_files(dict(zip(pieces[::2], pieces[1::2], strict=True)))

    return unpack
