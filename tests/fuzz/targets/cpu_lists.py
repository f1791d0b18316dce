# SPDX-License-Identifier: Apache-2.0
"""The kernel's lists of CPUs: "0-3,8"."""

import contextlib

from ipitrace.host.files import parse_cpu_list


def fuzz(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse_cpu_list(data.decode(errors="replace"))
