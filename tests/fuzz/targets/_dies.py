# SPDX-License-Identifier: Apache-2.0
"""A parser that crashes in C; test_fuzz_runner.py sees that it is caught."""

import os
import signal


def fuzz(_data: bytes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
