# SPDX-License-Identifier: Apache-2.0
"""One interval of `watch` as JSON."""

from ipitrace.watch.model import WatchInterval


def render_json(interval: WatchInterval) -> str:
    """One line, as schemas/watch.schema.json describes it."""
    return interval.to_json() + "\n"
