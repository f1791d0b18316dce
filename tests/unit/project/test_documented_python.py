# SPDX-License-Identifier: Apache-2.0
"""The Python examples of the documents run as they are printed there, one page one notebook."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ipitrace

CHECKOUT = Path(__file__).parents[3]
EXAMPLE = CHECKOUT / "tests/data/recordings/micro-pvm"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS_KVM = ("ipitrace.run(",)


def blocks(page: str) -> list[str]:
    return BLOCK.findall((CHECKOUT / "docs" / page).read_text())


def run_as_a_notebook(cells: list[str], tmp_path: Path) -> str:
    program = "\n".join([f"DIR = {str(EXAMPLE)!r}", *cells])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-I", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_of_recordings(tmp_path: Path) -> None:
    cells = blocks("recording.md")
    assert {re.search(r"import (\w+)", cell)[1] for cell in cells} == {  # type: ignore[index]
        "duckdb",
        "polars",
        "pandas",
    }
    said = run_as_a_notebook(cells, tmp_path)
    assert "unicast-running" in said
    assert "kvm_apic_ipi" in said


def test_of_the_api(tmp_path: Path) -> None:
    cells = blocks("api.md")
    assert sum(any(word in cell for word in NEEDS_KVM) for cell in cells) == 1
    free = [cell for cell in cells if not any(word in cell for word in NEEDS_KVM)]
    # What is set in one cell serves the next ones; only the first imports.
    said = run_as_a_notebook(free, tmp_path)
    assert "unicast-halted" in said


@pytest.mark.live("root", "kvm")
def test_of_a_run(tmp_path: Path) -> None:
    cell = next(cell for cell in blocks("api.md") if NEEDS_KVM[0] in cell)
    assert run_as_a_notebook(["import ipitrace", cell], tmp_path).startswith("True ()")


def test_the_page_names_all_that_is_public() -> None:
    page = (CHECKOUT / "docs/api.md").read_text()
    table = re.findall(r"^\| (.+?) \|", page, re.MULTILINE)
    named = {name for cell in table for name in re.findall(r"`(\w+)", cell)}
    errors = {name for name in ipitrace.__all__ if name.endswith("Error")}
    assert named | errors == {*ipitrace.__all__} - {"__version__"}
    assert all(f"`{name}`" in page for name in errors)


@pytest.mark.parametrize("name", [name for name in ipitrace.__all__ if name != "__version__"])
def test_what_is_public_is_documented_and_typed(name: str) -> None:
    thing = getattr(ipitrace, name)
    assert inspect.getdoc(thing)
    if inspect.isfunction(thing):
        signature = inspect.signature(thing)
        assert signature.return_annotation is not inspect.Signature.empty
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty


def test_there_is_nothing_else() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(ipitrace, "nothing")  # noqa: B009 - mypy knows better
