# SPDX-License-Identifier: Apache-2.0
"""Parts that all changes of a guest share: reports, checks, unloading a module."""

import contextlib
from collections.abc import Callable
from typing import Final

from ipitrace.base.errors import HostError
from ipitrace.base.foreign import plain
from ipitrace.storm.transport.shell import Finished, Shell

Tell = Callable[[str], None]
"""Prints a line for each action."""

Step = Callable[[str], contextlib.AbstractContextManager[Callable[[], None]]]
"""A context for each action that takes time; its function is called repeatedly meanwhile."""

CHANGE_S: Final = 900.0
"""The time limit of a build or of DKMS, for emulated guests; a real machine needs 5 s."""


def checked(done: Finished, what: str) -> Finished:
    """Return `done` if the command succeeded.

    Raises:
        HostError: it failed.
    """
    if done.status != 0:
        raise HostError(
            f"{what[0].upper()}{what[1:]} failed: {plain(done.stderr or done.text)}",
            "Check that the guest's disk has free space and is not read-only.",
        )
    return done


def unload(shell: Shell, module: str, tell: Tell) -> None:
    """Unload a module that is loaded.

    Raises:
        HostError: a storm is running, or the guest refuses.
    """
    done = shell.run(["rmmod", module])
    if done.status != 0:
        raise HostError(
            f"The module {module} cannot be unloaded: {plain(done.stderr)}",
            "This happens while a storm runs in the guest: wait for its end, or end it there.",
        )
    tell(f"unloaded {module}")
