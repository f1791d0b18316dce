# SPDX-License-Identifier: Apache-2.0
"""A name means one thing in the whole package."""

import ast
from collections import defaultdict
from pathlib import Path

import ipitrace

PACKAGE = Path(ipitrace.__file__).parent


def test_no_two_public_classes_share_a_name() -> None:
    modules: dict[str, list[str]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                modules[node.name].append(str(path.relative_to(PACKAGE)))
    assert len(modules) > 100
    assert {name: where for name, where in modules.items() if len(where) > 1} == {}
