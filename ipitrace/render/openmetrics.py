# SPDX-License-Identifier: Apache-2.0
"""What every OpenMetrics text has in it."""

from collections.abc import Mapping


def labels(named: Mapping[str, str]) -> str:
    """The labels in braces, escaped."""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in named.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
