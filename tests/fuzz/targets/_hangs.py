# SPDX-License-Identifier: Apache-2.0
"""A parser that does not come back; test_fuzz_runner.py sees that it is caught."""


def fuzz(data: bytes) -> None:
    while data is not None:
        pass
