# SPDX-License-Identifier: Apache-2.0
"""A real run.json with some of its values replaced, removed or doubled, so that more is reached.

Each edit is a walk into the text: what is entered at each step, and what happens there.
"""

import copy
import json
from typing import Any

from ..pieces import ODD_VALUES, Pieces
from ..recorded import example, read_and_use

_DEEPEST = 8


def fuzz(data: bytes) -> None:
    pieces = Pieces(data)
    run = example()
    while pieces and run:
        _edit(run, pieces)
    read_and_use(json.dumps(run).encode(errors="surrogatepass"))


def _edit(at: Any, pieces: Pieces) -> None:
    for _ in range(_DEEPEST):
        keys: list[Any] = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            pieces.byte()
            return
        key = pieces.pick(keys)
        what = pieces.byte()
        if what < 128 and isinstance(at[key], dict | list):
            at = at[key]
        elif what < 144:
            del at[key]
            return
        elif what < 152 and isinstance(at, list):
            at.append(copy.deepcopy(at[key]))
            return
        else:
            at[key] = copy.deepcopy(pieces.pick(ODD_VALUES))
            return
