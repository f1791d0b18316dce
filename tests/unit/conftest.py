# SPDX-License-Identifier: Apache-2.0
"""Made-up /proc and /sys trees."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from ipitrace.host.files import HostFiles


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
