# SPDX-License-Identifier: Apache-2.0
"""A parser that keeps what it took; test_fuzz_runner.py sees that it is caught."""

_KEPT: list[bytes] = []


def fuzz(data: bytes) -> None:
    _KEPT.append(bytes([len(data) % 256]) * (16 << 20))
