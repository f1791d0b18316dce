# SPDX-License-Identifier: Apache-2.0
"""What the hints of errors, and the doctor's, tell a person to do can be done."""

import ast
import functools
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import ipitrace
from ipitrace import errors
from ipitrace.commands.group import ipitrace_group

PACKAGE = Path(ipitrace.__file__).parent
CHECKOUT = PACKAGE.parent

# Modules that several commands import and of which these alone come to the errors with options.
OF_COMMANDS = {
    "compare/versus.py": {"compare"},
    "guests.py": {"run"},
    "host/memory.py": {"run"},
    "limits.py": {"run"},
    "pipeline.py": {"run"},
    "recording.py": {"run"},
    "storm/linux.py": {"run"},
    "storm/micro/image.py": {"run"},
    "storm/micro/machine.py": {"run"},
    "vm/agent_socket.py": {"run", "guest"},
}
# Options in hints that are not ours, by the program whose they are.
OF_OTHERS = {"--pid=host": "the container's"}


@dataclass(frozen=True)
class Hint:
    """A hint as the source spells it; "{}" stands for what is put in when it is raised."""

    module: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.text}"


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def kinds_of_errors() -> dict[str, int]:
    """Position of the hint, by the name of what is called."""
    found = {"Check": 3, "DefectError": 1}
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.IpitraceError):
            found[name] = 1
    return found


def called(node: ast.AST) -> str:
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name):
            return node.func.id
        if isinstance(node.func, ast.Attribute):
            return node.func.attr
    return ""


def assigned(name: str, scope: ast.AST) -> Iterator[ast.expr]:
    """All that is ever put into a name in a scope."""
    for node in ast.walk(scope):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                yield node.value
            for target in targets:  # a, b = ...
                if isinstance(target, ast.Tuple) and any(
                    isinstance(t, ast.Name) and t.id == name for t in target.elts
                ):
                    yield node.value


def module_of(imported: str) -> Path | None:
    parts = imported.split(".")
    if parts[0] != "ipitrace":
        return None
    at = CHECKOUT.joinpath(*parts)
    return next((p for p in (at.with_suffix(".py"), at / "__init__.py") if p.exists()), None)


def origin(name: str, path: Path) -> Path | None:
    """Where a name that is imported comes from."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return module_of(node.module)
    return None


def texts(node: ast.expr, path: Path, scope: ast.AST, depth: int = 0) -> Iterator[str]:
    """The text that an expression can be, as far as it is written in the package."""
    if depth > 4:
        return
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.JoinedStr):
        whole = ""
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                inner = list(texts(part.value, path, scope, depth + 1))
                whole += inner[0] if len(inner) == 1 else "{}"
                yield from inner[1:] if len(inner) > 1 else ()
            else:
                whole += str(part.value) if isinstance(part, ast.Constant) else ""
        yield whole
    elif isinstance(node, ast.Name):
        values = [*assigned(node.id, scope), *assigned(node.id, tree(path))]
        for value in values:
            yield from texts(value, path, scope, depth + 1)
        elsewhere = origin(node.id, path)
        if not values and elsewhere is not None:
            for value in assigned(node.id, tree(elsewhere)):
                yield from texts(value, elsewhere, tree(elsewhere), depth + 1)
    elif isinstance(node, ast.Call):
        home = origin(called(node), path) or path
        for function in ast.walk(tree(home)):
            if isinstance(function, ast.FunctionDef) and function.name == called(node):
                for part in ast.walk(function):
                    if isinstance(part, ast.Return) and part.value is not None:
                        yield from texts(part.value, home, function, depth + 1)
        for argument in [*node.args, *(k.value for k in node.keywords)]:
            yield from texts(argument, path, scope, depth + 1)
    else:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                yield from texts(child, path, scope, depth + 1)


def hints() -> list[Hint]:
    kinds, found = kinds_of_errors(), []
    for path in sorted(PACKAGE.rglob("*.py")):
        for scope in ast.walk(tree(path)):
            if not isinstance(scope, (ast.FunctionDef, ast.Module)):
                continue
            body = scope.body if isinstance(scope, ast.FunctionDef) else []
            for node in (n for statement in body for n in ast.walk(statement)):
                position = kinds.get(called(node))
                if position is None or not isinstance(node, ast.Call):
                    continue
                for given in node.args[position : position + 1]:
                    name = str(path.relative_to(PACKAGE))
                    found += [Hint(name, node.lineno, t) for t in texts(given, path, scope)]
                for keyword in node.keywords:
                    # Ends of hints that are handed in, see host/access.py.
                    assert keyword.arg != "hint", "give it by position, so that it is found"
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                for keyword in node.keywords:
                    if keyword.arg == "otherwise":
                        name = str(path.relative_to(PACKAGE))
                        found += [
                            Hint(name, node.lineno, t)
                            for t in texts(keyword.value, path, tree(path))
                        ]
    return [hint for hint in dict.fromkeys(found) if hint.text.strip()]


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
    return {
        name
        for name in ipitrace_group.commands
        if path in imported_by(own / f"{name}.py")
    }


def command(words: list[str]) -> tuple[click.Command, str]:
    """The command that is named, and how its name is spelt."""
    found: click.Command = ipitrace_group
    name = "ipitrace"
    for word in words:
        if not isinstance(found, click.Group) or word not in found.commands:
            break
        found, name = found.commands[word], f"{name} {word}"
    return found, name


def options(of: click.Command) -> set[str]:
    """All of them, those of a group's commands included."""
    found = {o for p in of.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    if isinstance(of, click.Group):
        found.update(*(options(one) for one in of.commands.values()))
    if of.name == "ab":  # what comes after them goes to 'run'
        found |= options(ipitrace_group.commands["run"])
    return found


NAMED = re.compile(r"\bipitrace ([a-z]+)((?: [a-z]+)*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*(?:=\w+)?")


def faults(hint: Hint) -> Iterator[str]:
    """What in a hint is not so."""
    for match in NAMED.finditer(hint.text):
        if hint.text[: match.start()].rstrip().lower().endswith(("this", "reinstall", "the")):
            continue  # the program itself: "this ipitrace"
        if match[1] not in ipitrace_group.commands:
            if f"'ipitrace {match[1]}" in hint.text or f"`ipitrace {match[1]}" in hint.text:
                yield f"there is no command {match[0]}"
            continue
        found, name = command([match[1], *match[2].split()])
        rest = re.split(r"['`;,]|\. ", hint.text[match.end() :])[0]
        for option in OPTION.findall(rest):
            if option not in options(found):
                yield f"{name} has no {option}"
    bare = re.sub(r"(['`]?)ipitrace [a-z]+[^'`;,]*\1", "", hint.text)
    for option in OPTION.findall(bare):
        for name in sorted(commands_of(hint.module)):
            if option not in OF_OTHERS and option not in options(ipitrace_group.commands[name]):
                yield f"'ipitrace {name}' has no {option}"
    for file in re.findall(r"\b(?:docs|script|guest-tools)/[\w./-]*\w", hint.text):
        if not (CHECKOUT / file).exists():
            yield f"there is no {file}"


HINTS = hints()


def test_hints_are_found() -> None:
    """Of all ways in which they are written; else the others prove nothing."""
    said = "\n".join(map(str, HINTS))
    assert len(HINTS) > 150
    for text in (
        "sudo usermod -aG {} $USER",  # a function of another module answers it
        "See 'ipitrace scenarios' for those that can.",
        "--no-trace measures without looking into the host",
        "modprobe msr",
        "ipitrace guest install",
    ):
        assert text in said, text


@pytest.mark.parametrize("hint", HINTS, ids=lambda hint: f"{hint.module}:{hint.line}")
def test_what_a_hint_names_is_there(hint: Hint) -> None:
    assert list(faults(hint)) == [], str(hint)


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
        ("storm/linux.py", "see docs/no-such.md"),
        ("compare/gates.py", "or --frobnicate"),
    ):
        assert list(faults(Hint(module, 1, text))), text
    for module, text in (
        ("pipeline.py", "Run it with sudo; --no-trace measures without."),
        ("doctor/tracing.py", "'ipitrace run --no-trace' measures without."),
    ):
        assert not list(faults(Hint(module, 1, text))), text
