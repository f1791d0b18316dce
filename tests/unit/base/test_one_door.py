# SPDX-License-Identifier: Apache-2.0
"""Nothing but the console module writes to a terminal, so that no renderer can forget to."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ipitrace

PACKAGE = Path(ipitrace.__file__).parent
STREAMS = {"stdout", "stderr", "__stdout__", "__stderr__"}
DOOR = "base/console.py"
# The descriptors 1 and 2 themselves, before there is anything to say.
STARTS = "cli.py"
OTHERS = {
    "tracer/bcc_compile.py": "flushes, to capture what a C library writes to descriptor 2",
    "host/guard.py": "a process of its own, which becomes another program",
    "recording/decoder.py": "a process of its own, which answers into a pipe",
    "storm/micro/preemptor_process.py": "a process of its own, which answers into a pipe",
    "commands/ab.py": "hands standard error to the commands of the person",
    "render/progress.py": "asks whether it is a terminal",
    "render/watch/screen.py": "rich's screen, which gets plain_lines()",
}


def sources() -> list[str]:
    return sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


FUNCTIONS = {
    *("print", "Console", "click.echo", "click.secho", "click.echo_via_pager"),
    *("click.get_text_stream", "traceback.print_exc", "traceback.print_exception"),
    *("pprint.pprint", "os.write(1", "os.write(2", "pprint"),
    *(f"sys.{stream}" for stream in STREAMS),
}


def ways_out(tree: ast.AST) -> Iterator[str]:
    """Whatever can write to a standard stream."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            yield from {ast.unparse(node)} & FUNCTIONS
        elif isinstance(node, ast.Call) and node.args:
            call = f"{ast.unparse(node.func)}({ast.unparse(node.args[0])}"
            yield from {call} & FUNCTIONS
        elif isinstance(node, ast.ImportFrom) and node.module in {"sys", "click"}:
            yield from {alias.name for alias in node.names} & {*STREAMS, "echo", "secho"}


@pytest.mark.parametrize("name", sources())
def test_only_the_door_writes(name: str) -> None:
    found = list(ways_out(ast.parse((PACKAGE / name).read_text())))
    if name in {DOOR, STARTS, *OTHERS}:
        return
    assert not found


def test_the_exceptions_are_needed() -> None:
    for name in (DOOR, STARTS, *OTHERS):
        assert list(ways_out(ast.parse((PACKAGE / name).read_text()))), name


@pytest.mark.parametrize(
    "text",
    [
        "print('x')",
        "click.echo('x')",
        "import sys\nsys.stdout.write('x')",
        "from click import echo",
        "from sys import stderr",
        "Console().print('x')",
        "os.write(1, b'x')",
    ],
)
def test_a_way_out_is_found(text: str) -> None:
    assert list(ways_out(ast.parse(text)))
