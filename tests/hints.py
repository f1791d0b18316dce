# SPDX-License-Identifier: Apache-2.0
"""Finds in the package's source every hint that an error, or the doctor, may give."""

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ipitrace
from ipitrace.base import errors

PACKAGE = Path(ipitrace.__file__).parent
CHECKOUT = PACKAGE.parent
_DEEPEST = 4  # names of names


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
    if depth > _DEEPEST:
        return
    if isinstance(node, ast.Constant):
        yield from [node.value] if isinstance(node.value, str) else []
    elif isinstance(node, ast.JoinedStr):
        yield from _put_together(node, path, scope, depth)
    elif isinstance(node, ast.Name):
        yield from _named(node.id, path, scope, depth)
    elif isinstance(node, ast.Call):
        yield from _answered(called(node), path, depth)
        for argument in [*node.args, *(k.value for k in node.keywords)]:
            yield from texts(argument, path, scope, depth + 1)
    else:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                yield from texts(child, path, scope, depth + 1)


def _put_together(node: ast.JoinedStr, path: Path, scope: ast.AST, depth: int) -> Iterator[str]:
    """The whole; what may be several texts is "{}" in it, and each of these comes by itself."""
    whole = ""
    for part in node.values:
        if isinstance(part, ast.FormattedValue):
            inner = list(texts(part.value, path, scope, depth + 1))
            whole += inner[0] if len(inner) == 1 else "{}"
            yield from inner[1:] and inner
        elif isinstance(part, ast.Constant):
            whole += str(part.value)
    yield whole


def _named(name: str, path: Path, scope: ast.AST, depth: int) -> Iterator[str]:
    """What a name stands for, in the function, the module, or where it is imported from."""
    values = [*assigned(name, scope), *assigned(name, tree(path))]
    for value in values:
        yield from texts(value, path, scope, depth + 1)
    home = None if values else origin(name, path)
    for value in assigned(name, tree(home)) if home is not None else ():
        yield from texts(value, home or path, tree(home or path), depth + 1)


def _answered(name: str, path: Path, depth: int) -> Iterator[str]:
    """What a function of the package returns."""
    home = origin(name, path) or path
    for function in ast.walk(tree(home)):
        if isinstance(function, ast.FunctionDef) and function.name == name:
            for part in ast.walk(function):
                if isinstance(part, ast.Return) and part.value is not None:
                    yield from texts(part.value, home, function, depth + 1)


def _calls(path: Path) -> Iterator[tuple[ast.Call, ast.AST]]:
    """Every call in a module's functions, and the function."""
    for scope in ast.walk(tree(path)):
        if isinstance(scope, ast.FunctionDef):
            yield from ((n, scope) for n in ast.walk(scope) if isinstance(n, ast.Call))


def hints() -> list[Hint]:
    """All of them: the hint's argument, and the ends that a caller hands in (host/access.py)."""
    kinds = kinds_of_errors()
    found: dict[Hint, None] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = str(path.relative_to(PACKAGE))
        for call, scope in _calls(path):
            position = kinds.get(called(call), len(call.args))
            named = {keyword.arg: keyword.value for keyword in call.keywords}
            assert called(call) not in kinds or "hint" not in named, (
                "give it by position, so that it is found"
            )
            given = call.args[position : position + 1]
            given += [named["otherwise"]] if "otherwise" in named else []
            for node in given:
                told = texts(node, path, scope)
                found |= {Hint(module, node.lineno, text): None for text in told if text.strip()}
    return list(found)
