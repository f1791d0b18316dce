# SPDX-License-Identifier: Apache-2.0
r"""What ssh prints: an ssh of our own on PATH. The input is four parts with \xff between.

First what the kept connection prints (without a line it ends), then a command's stdout, its
stderr, and its exit status.
"""

import contextlib
import functools
import os
import stat
import time
from pathlib import Path
from unittest import mock

from ipitrace.base.errors import IpitraceError
from ipitrace.storm.transport.ssh import Destination, open_ssh

from .. import files

_PROGRAM = """#!/bin/sh
master= socket=
while [ $# -gt 1 ]; do
	case $1 in
	-G) exit ;;
	-M) master=yes ;;
	-S) socket=$2 ;;
	esac
	shift
done
if [ "$master" ]; then
	: >"$socket"
	exec sleep 60
fi
case $1 in
*"id -u")
	echo 1 >&2
	exec /bin/cat {folder}/first ;;
esac
/bin/cat {folder}/out
/bin/cat {folder}/err >&2
read -r status < {folder}/status
exit "$status"
"""
_PARTS = 4


@functools.cache
def _folder() -> Path:
    folder = files.folder()
    program = folder / "ssh"
    program.write_text(_PROGRAM.format(folder=folder))
    program.chmod(stat.S_IRWXU)
    return folder


def fuzz(data: bytes) -> None:
    folder = _folder()
    parts = data.split(b"\xff", _PARTS - 1) + [b""] * _PARTS
    for name, content in zip(("first", "out", "err"), parts, strict=False):
        (folder / name).write_bytes(content)
    (folder / "status").write_text(f"{parts[3][0] if parts[3] else 0}\n")
    sleep = time.sleep
    with (
        contextlib.suppress(IpitraceError),
        mock.patch.dict(os.environ, {"PATH": f"{folder}:/usr/bin:/bin"}),
        mock.patch("time.sleep", lambda seconds: sleep(min(seconds, 5e-4))),
        open_ssh(Destination("guest", None, None)) as shell,
    ):
        shell.run(["true"], timeout_s=10.0)
