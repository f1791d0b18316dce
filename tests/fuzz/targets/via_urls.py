# SPDX-License-Identifier: Apache-2.0
"""--via: which way into a guest a URL means, and what ssh is then given."""

import contextlib
from urllib.parse import urlsplit

from ipitrace.base.errors import IpitraceError
from ipitrace.storm.transport.registry import open_shell
from ipitrace.storm.transport.ssh import Destination


def fuzz(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    with contextlib.suppress(IpitraceError):
        open_shell(text)  # opens nothing before it is entered
    with contextlib.suppress(IpitraceError):
        try:
            url = urlsplit(f"ssh://{text}")
        except ValueError:
            return
        assert "" not in Destination.parse(url).arguments
