# SPDX-License-Identifier: Apache-2.0
"""The guard's own program: runs a command that dies with the process that asked for it.

Run by child.py as a process of the standard library alone. Arguments: LIFELINE FOLDER
COMMAND... It leads a session and process group of its own, and COMMAND is its child in it.

LIFELINE is the read end of a pipe that nobody writes to. It ends with the last process that
has the other end, however that process ends; SIGKILL is no exception, and one that is dead
already is seen at once. (PR_SET_PDEATHSIG would follow the thread that forked, is lost in
exec of a set-user-ID program, and reaches no grandchild.) Then the whole group is killed.

FOLDER is made first, for its owner alone, unless it is "", and removed at the end.

Ends as COMMAND did.
"""

import contextlib
import os
import select
import signal
import sys

_NOT_STARTED = 127  # as a shell's


def _start(command: list[str], lifeline: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.close(lifeline)
    # Python ignores the first two (and whoever starts us in the background, SIGINT).
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(command[0], command)  # noqa: S606
    except OSError as error:
        os.write(2, f"{command[0]} cannot be started: {error.strerror}\n".encode())
    os._exit(_NOT_STARTED)


def _ended(pid: int) -> int | None:
    """A child's exit status as waitpid(2) has it, and what else ended is reaped."""
    with contextlib.suppress(ChildProcessError):
        while True:
            found, status = os.waitpid(-1, os.WNOHANG)
            if found == pid:
                return status
            if not found:
                break
    return None


def _remove(folder: str) -> None:
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208 - without pathlib it starts faster
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, name))  # noqa: PTH108, PTH118
        os.rmdir(folder)  # noqa: PTH106


def _watch(pid: int, lifeline: int) -> int | None:
    """Wait until the child ends, and how it did; None when the lifeline ended first."""
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # the command gets them, too, and may end of them
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    poll.register(woken, select.POLLIN)
    while True:
        status = _ended(pid)
        if status is not None:
            return status
        if lifeline in dict(poll.poll()):
            return None
        os.read(woken, 512)


def main() -> None:
    """Run the command; see above."""
    lifeline, folder, *command = sys.argv[1:]
    if folder:
        os.mkdir(folder, 0o700)  # noqa: PTH102
    pid = _start(command, int(lifeline))
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # the command's alone, so that their other ends see its end
        os.dup2(nothing, stream)
    status = _watch(pid, int(lifeline))
    if status is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if folder:
        _remove(folder)
    if status is None:
        os.killpg(0, signal.SIGKILL)
    elif os.WIFSIGNALED(status):
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status or 0) & 0xFF)


main()
