# SPDX-License-Identifier: Apache-2.0
"""What every OpenMetrics text has in it."""

from collections.abc import Mapping
from typing import Final

from ipitrace.base.foreign import plain

_MOST_CHARS: Final = 4000
"""More than a VM's name has with every character escaped: two names must not become one."""


def labels(named: Mapping[str, str]) -> str:
    """The labels in braces, escaped."""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in named.items()) + "}"


def _escaped(value: str) -> str:
    return plain(value, _MOST_CHARS).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
