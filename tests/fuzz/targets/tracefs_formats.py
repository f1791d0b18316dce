# SPDX-License-Identifier: Apache-2.0
"""A tracepoint's format file in tracefs."""

from ipitrace.tracer.formats import parse_format


def fuzz(data: bytes) -> None:
    for name, column in parse_format(data.decode(errors="replace")).items():
        assert name == column.name
        assert column.c_type is None or column.offset >= 0
