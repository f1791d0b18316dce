# SPDX-License-Identifier: Apache-2.0
"""A folder that no other user can reach through a folder that others may write to (/tmp)."""

import os
import pwd
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new empty folder in the home of the effective user."""
    home = pwd.getpwuid(os.geteuid()).pw_dir
    with tempfile.TemporaryDirectory(prefix=".ipitrace-test-", dir=home) as name:
        yield Path(os.path.realpath(name))
