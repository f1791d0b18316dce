# SPDX-License-Identifier: Apache-2.0
"""A parser that gives a traceback; test_fuzz_runner.py sees that it is caught."""


def fuzz(data: bytes) -> None:
    raise ValueError(data)
