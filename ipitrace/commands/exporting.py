# SPDX-License-Identifier: Apache-2.0
"""The file that `ipitrace watch --openmetrics` writes.

A failed write, for instance to a full disk, is reported and repeated at the next interval.
"""

from pathlib import Path

from ipitrace.base.errors import UsageError
from ipitrace.base.output import check_writable, replace_file
from ipitrace.render.watch.openmetrics import render_openmetrics
from ipitrace.watch import WatchInterval


class Exporter:
    """Replaces the file at each interval."""

    def __init__(self, path: Path) -> None:
        """Raises UsageError if the file can never be written: no directory, no permission."""
        self._path = path
        self._failures = 0
        self._why: str | None = None
        try:
            check_writable(path)
        except OSError as error:
            raise UsageError(
                f"{path} cannot be written ({error.strerror}).",
                "Name a file in a writable directory.",
            ) from error

    @property
    def note(self) -> str:
        """A sentence about a failed write; "" when the last write succeeded."""
        if self._why is None:
            return ""
        return f"{self._path} cannot be written: {self._why}; the next interval tries again."

    def put(self, interval: WatchInterval) -> str | None:
        """Write the totals; return a sentence when writing first fails, or succeeds again."""
        text = render_openmetrics(interval, write_failures=self._failures)
        former, self._why = self._why, None
        try:
            replace_file(self._path, text, readable=True)
        except (OSError, UsageError) as error:
            self._failures += 1
            self._why = error.message if isinstance(error, UsageError) else error.strerror
            self._why = (self._why or str(error)).rstrip(".")
            return None if former is not None else self.note
        if former is None:
            return None
        return f"{self._path} is written again; {self._failures} writes failed before."
