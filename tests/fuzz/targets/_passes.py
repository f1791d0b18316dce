# SPDX-License-Identifier: Apache-2.0
"""A parser without a defect, for test_fuzz_runner.py."""


def fuzz(_data: bytes) -> None:
    return
