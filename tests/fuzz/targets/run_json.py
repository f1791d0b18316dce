# SPDX-License-Identifier: Apache-2.0
"""A recording's run.json, byte by byte: read, printed, compared with itself."""

from ..recorded import read_and_use


def fuzz(data: bytes) -> None:
    read_and_use(data)
