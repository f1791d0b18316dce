# SPDX-License-Identifier: Apache-2.0
"""A file of gates (TOML), and the gates in it."""

import contextlib

from ipitrace.base.errors import UsageError
from ipitrace.compare.fingerprint import check_allowed
from ipitrace.compare.gates import named_counts, parse_gate, read_gates
from ipitrace.compare.model import GateKind

from ..files import one_sentence, place


def fuzz(data: bytes) -> None:
    path = place("gates.toml", data)
    with contextlib.suppress(UsageError), one_sentence():
        gates = read_gates(path)
        check_allowed(gates.allow)
        named_counts(tuple(map(parse_gate, gates.fail_on)))
        named_counts([parse_gate(spec, GateKind.REQUIRE) for spec in gates.require])
