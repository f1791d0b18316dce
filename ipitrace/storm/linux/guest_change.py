# SPDX-License-Identifier: Apache-2.0
"""What all that changes a guest does alike: saying so, checking, unloading a module."""

import contextlib
from collections.abc import Callable
from typing import Final

from ipitrace.base.errors import HostError
from ipitrace.base.foreign import plain
from ipitrace.storm.transport.shell import (
    Finished,
    Shell,
)

Tell = Callable[[str], None]
"""Gets a line for each thing that was done."""

Step = Callable[[str], contextlib.AbstractContextManager[Callable[[], None]]]
"""Is entered for each thing that takes its time; what it answers is called meanwhile."""

CHANGE_S: Final = 900.0
"""For a build, or DKMS at work, under emulation; 5 s on a real machine."""


def checked(done: Finished, what: str) -> Finished:
    """What was done, which must have succeeded.

    Raises:
        HostError: it has not.
    """
    if done.status != 0:
        raise HostError(
            f"{what[0].upper()}{what[1:]} failed: {plain(done.stderr or done.text)}",
            "See that the guest's disk has room and is not read-only.",
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
            "While a storm runs in the guest that is so: wait for its end, or end it there.",
        )
    tell(f"unloaded {module}")
