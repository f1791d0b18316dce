# SPDX-License-Identifier: Apache-2.0
"""What the hints of errors, and the doctor's, tell a person to do can be done."""

import ast
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hints import CHECKOUT, PACKAGE, Hint, hints, module_of, tree

from ipitrace.commands.group import ipitrace_group

# Modules that several commands import and of which these alone come to the errors with options.
OF_COMMANDS = {
    "compare/versus.py": {"compare"},
    "measure/guests.py": {"run"},
    "host/memory.py": {"run"},
    "measure/limits.py": {"run"},
    "measure/run.py": {"run"},
    "recording/writer.py": {"run"},
    "storm/linux/driver.py": {"run"},
    "storm/micro/image.py": {"run"},
    "storm/micro/machine.py": {"run"},
    "vm/agent_socket.py": {"run", "guest"},
}
# Options in hints that are not ours, by the program whose they are.
OF_OTHERS = {"--pid=host": "the container's"}


def commands_in(group: click.Group) -> dict[str, click.Command]:
    """By their names; each is loaded."""
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: one for name, one in found.items() if one is not None}


COMMANDS = commands_in(ipitrace_group)


@functools.cache
def imported_by(path: Path) -> frozenset[Path]:
    """All modules of the package that a module leads to."""
    seen: set[Path] = set()
    queue = [path]
    while queue:
        here = queue.pop()
        if here in seen:
            continue
        seen.add(here)
        for node in ast.walk(tree(here)):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            queue += [p for n in names if (p := module_of(n)) is not None]
    return frozenset(seen)


def commands_of(module: str) -> set[str]:
    """Those in which an error of this module can come up."""
    if module in OF_COMMANDS:
        return OF_COMMANDS[module]
    path, own = PACKAGE / module, PACKAGE / "commands"
    return {name for name in COMMANDS if path in imported_by(own / f"{name}.py")}


def command(words: list[str]) -> tuple[click.Command, str]:
    """The command that is named, and how its name is spelt."""
    found: click.Command = ipitrace_group
    name = "ipitrace"
    for word in words:
        known = commands_in(found) if isinstance(found, click.Group) else {}
        if word not in known:
            break
        found, name = known[word], f"{name} {word}"
    return found, name


def options(of: click.Command) -> set[str]:
    """All of them, those of a group's commands included."""
    found = {o for p in of.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    if isinstance(of, click.Group):
        found.update(*(options(one) for one in commands_in(of).values()))
    if of.name == "ab":  # what comes after them goes to 'run'
        found |= options(COMMANDS["run"])
    return found


NAMED = re.compile(r"\bipitrace ([a-z]+)((?: [a-z]+)*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*(?:=\w+)?")


def faults(hint: Hint) -> list[str]:
    """What in a hint is not so."""
    return [*_false_commands(hint.text), *_false_options(hint), *_false_files(hint.text)]


def _false_commands(text: str) -> Iterator[str]:
    for match in NAMED.finditer(text):
        if match[1] not in COMMANDS:
            if text[: match.start()].endswith(("'", "`")):  # else it is the program, "ipitrace is"
                yield f"there is no command {match[0]}"
            continue
        found, name = command([match[1], *match[2].split()])
        rest = re.split(r"['`;,]|\. ", text[match.end() :])[0]
        for option in OPTION.findall(rest):
            if option not in options(found):
                yield f"{name} has no {option}"


def _false_options(hint: Hint) -> Iterator[str]:
    """Of the command that runs, where no other is named."""
    bare = re.sub(r"(['`]?)ipitrace [a-z]+[^'`;,]*\1", "", hint.text)
    for option in set(OPTION.findall(bare)) - OF_OTHERS.keys():
        for name in sorted(commands_of(hint.module)):
            if option not in options(COMMANDS[name]):
                yield f"'ipitrace {name}' has no {option}"


def _false_files(text: str) -> Iterator[str]:
    for file in re.findall(r"\b(?:docs|script|guest-tools)/[\w./-]*\w", text):
        if not (CHECKOUT / file).exists():
            yield f"there is no {file}"


HINTS = hints()


def test_hints_are_found() -> None:
    """Of all ways in which they are written; else the others prove nothing."""
    said = "\n".join(map(str, HINTS))
    assert len(HINTS) > 150
    for text in (
        "sudo usermod -aG {} $USER",  # a function of another module answers it
        "'ipitrace scenarios' with the same --vm and --via prints the reasons.",
        "--no-trace measures without tracing the host",
        "modprobe msr",
        "ipitrace guest install",
    ):
        assert text in said, text


@pytest.mark.parametrize("hint", HINTS, ids=lambda hint: f"{hint.module}:{hint.line}")
def test_what_a_hint_names_is_there(hint: Hint) -> None:
    assert faults(hint) == [], str(hint)


def test_commands_that_hints_name_run() -> None:
    """Each of them as far as --help, and each of its options is told there."""
    named = {m[0] for hint in HINTS for m in NAMED.finditer(hint.text)}
    found = {command(words.split()[1:])[1] for words in named} - {"ipitrace"}
    assert {"ipitrace list", "ipitrace scenarios", "ipitrace guest install"} <= found
    for name in found:
        done = CliRunner().invoke(ipitrace_group, [*name.split()[1:], "--help"])
        assert done.exit_code == 0, name


def test_targets_of_make_that_hints_name_are_there() -> None:
    named = {
        (m[1], m[2])
        for hint in HINTS
        for m in re.finditer(r"\bmake (?:-C (\S+) )?([a-z{][\w{}-]*)", hint.text)
        if f"make {m[2]}" not in ("make storms", "make a", "make it")
    }
    for folder, target in named:
        if "{" in target or "{" in (folder or ""):
            continue  # put in when it is raised; a test of its module runs it
        where = CHECKOUT if folder is None else CHECKOUT / "guest-tools" / folder
        done = subprocess.run(["make", "-n", "-C", where, target], capture_output=True, check=False)
        assert done.returncode == 0, (folder, target)


def test_a_false_hint_is_noticed() -> None:
    for module, text in (
        ("host/access.py", "Run it with sudo; --no-trace measures without."),
        ("watch/watcher.py", "See 'ipitrace lisst'."),
        ("watch/watcher.py", "'ipitrace watch --no-trace' does."),
        ("storm/linux/driver.py", "see docs/no-such.md"),
        ("compare/gates.py", "or --frobnicate"),
    ):
        assert faults(Hint(module, 1, text)), text
    for module, text in (
        ("measure/run.py", "Run it with sudo; --no-trace measures without."),
        ("doctor/tracing.py", "'ipitrace run --no-trace' measures without."),
    ):
        assert not faults(Hint(module, 1, text)), text
