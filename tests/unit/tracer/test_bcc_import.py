# SPDX-License-Identifier: Apache-2.0
"""Finding the right bcc among wrong ones."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipitrace.base.errors import HostError
from ipitrace.tracer.bcc_import import import_bcc


@pytest.fixture
def no_bcc_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An interpreter that has never imported bcc and whose path has none."""
    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "bcc"}
    for name in kept:
        del sys.modules[name]
    path = [entry for entry in sys.path if not (Path(entry) / "bcc").is_dir()]
    monkeypatch.setattr(sys, "path", path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "bcc"]:
        del sys.modules[name]
    sys.modules.update(kept)


def install(directory: Path, text: str) -> Path:
    (directory / "bcc").mkdir(parents=True)
    (directory / "bcc" / "__init__.py").write_text(text)
    (directory / "bcc" / "table.py").write_text("NAME = 'table'\n")
    return directory


REAL = "from .table import NAME\nclass BPF: pass\n"
LATTICE = "class Lattice: pass\n"


@pytest.mark.usefixtures("no_bcc_yet")
@pytest.mark.parametrize(
    "place",
    [
        "usr/lib/python3/dist-packages",
        "usr/lib/python3.13/site-packages",
        "usr/lib64/python3.12/site-packages",
    ],
)
def test_the_distribution_s_is_found(place: str, tmp_path: Path) -> None:
    install(tmp_path / place, REAL)
    module = import_bcc(tmp_path)
    assert module.NAME == "table"
    assert module.__file__ == str(tmp_path / place / "bcc/__init__.py")


@pytest.mark.usefixtures("no_bcc_yet")
def test_the_unrelated_package_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(install(tmp_path / "venv", LATTICE))
    install(tmp_path / "usr/lib/python3/dist-packages", REAL)
    assert hasattr(import_bcc(tmp_path), "BPF")


@pytest.mark.usefixtures("no_bcc_yet")
def test_only_the_unrelated_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(install(tmp_path / "venv", LATTICE))
    with pytest.raises(HostError, match="not installed") as raised:
        import_bcc(tmp_path)
    assert "python3-bpfcc" in raised.value.hint
    assert "python3-bcc" in raised.value.hint


@pytest.mark.usefixtures("no_bcc_yet")
def test_a_bcc_whose_library_is_gone(tmp_path: Path) -> None:
    install(
        tmp_path / "usr/lib/python3/dist-packages",
        "import ctypes\nctypes.CDLL('libabsent-for-test.so.0')\n",
    )
    with pytest.raises(HostError, match=r"cannot be loaded: libabsent-for-test\.so\.0"):
        import_bcc(tmp_path)
    assert "bcc" not in sys.modules
