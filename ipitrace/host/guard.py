# SPDX-License-Identifier: Apache-2.0
"""The guard: runs a command that is killed when the process that started the guard ends.

child.py runs this file as a process that uses only the standard library. Arguments: LIFELINE
FOLDER COMMAND... The guard leads a session and a process group; COMMAND is its child there.

LIFELINE is the read end of a pipe that no process writes to. The pipe reports its end when the
last process with the write end has ended in any way, also by SIGKILL, and also if that process
has already ended before the guard starts. The guard then kills the whole process group.
PR_SET_PDEATHSIG is not used: it follows the thread that forked, is lost in exec of a set-user-ID
program, and reaches no grandchild.

FOLDER is created first, accessible to its owner only, unless it is "". It is removed at the end.

The guard's exit status is the status of COMMAND.
"""

import contextlib
import os
import select
import signal
import sys

_NOT_STARTED = 127  # as in a shell


def _start(command: list[str], lifeline: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.close(lifeline)
    # Python ignores the first two. SIGINT is ignored if we were started in the background.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(command[0], command)  # noqa: S606
    except OSError as error:
        os.write(2, f"{command[0]} cannot be started: {error.strerror}\n".encode())
    os._exit(_NOT_STARTED)


def _ended(pid: int) -> int | None:
    """The child's status from waitpid(2), or None. Other ended children are reaped."""
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
        for name in os.listdir(folder):  # noqa: PTH208 - starts faster without pathlib
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, name))  # noqa: PTH108, PTH118
        os.rmdir(folder)  # noqa: PTH106


def _watch(pid: int, lifeline: int) -> int | None:
    """Wait for the child and return its status; None if the lifeline ended first."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # the command receives them and may end
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    poll.register(read_fd, select.POLLIN)
    while True:
        status = _ended(pid)
        if status is not None:
            return status
        if lifeline in dict(poll.poll()):
            return None
        os.read(read_fd, 512)


def main() -> None:
    """Run the command; see the module's docstring."""
    lifeline, folder, *command = sys.argv[1:]
    if folder:
        os.mkdir(folder, 0o700)  # noqa: PTH102
    pid = _start(command, int(lifeline))
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # only the command holds them, so readers see its end
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
