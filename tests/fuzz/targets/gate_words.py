# SPDX-License-Identifier: Apache-2.0
"""--fail-on, --require, --min-effect, --allow and --pair, as a person or a CI file writes them."""

import contextlib

from ipitrace.base.errors import UsageError
from ipitrace.commands.comparing import parse_minimum
from ipitrace.compare.fingerprint import check_allowed
from ipitrace.compare.gates import named_counts, parse_gate
from ipitrace.compare.model import GateKind
from ipitrace.compare.versus import parse_pair


def fuzz(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    for read in (
        lambda: named_counts([parse_gate(text)]),
        lambda: named_counts([parse_gate(text, GateKind.REQUIRE)]),
        lambda: parse_minimum([text]),
        lambda: check_allowed([text]),
        lambda: parse_pair(text),
    ):
        with contextlib.suppress(UsageError):
            read()
