# SPDX-License-Identifier: Apache-2.0
"""A run as JSON."""

from ipitrace.recording.result import RunResult


def render_json(run: RunResult) -> str:
    """The text of run.json."""
    return run.to_json()
