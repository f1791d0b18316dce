# SPDX-License-Identifier: Apache-2.0
"""A Parquet file of spans, byte by byte, as the decoding process reads it.

Each input is decoded in a fork under the limits that process sets itself: the decoder in C++
may be stopped by them, or die; what counts is that it ends, and what it says before.
"""

import io
import json
import os
import signal
import sys
import time
import traceback
import warnings

import pyarrow as pa

from ipitrace.recording.decoder import Question, decode, restrict

_CPU_S = 5
_ENOUGH_S = 15.0
_ROWS = 30
_LONGEST_ANSWER = 1 << 16
_TOLD = (ValueError, OSError, MemoryError, pa.ArrowException)
_DEFECT = 77
_QUESTIONS = (
    Question("spans", _ROWS),
    Question("spans", _ROWS, ["seq", "path"], {"ipi": (1, 1 << 70)}, {"path": "msr-exit"}),
)


def fuzz(data: bytes) -> None:
    with warnings.catch_warnings():  # of threads, which decode nothing here
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _decode(data)
    until_s = time.monotonic() + _ENOUGH_S
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > until_s:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError("the decoder outlives its limits")
        time.sleep(2e-4)
    _pid, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) == _DEFECT:
        raise AssertionError("see the traceback above")


def _decode(data: bytes) -> None:
    try:
        restrict(_CPU_S)
        for question in _QUESTIONS:
            try:
                answer = json.dumps(list(decode(io.BytesIO(data), question)))
                if len(answer) > _LONGEST_ANSWER:
                    raise AssertionError("more rows than the file has")
            except _TOLD:
                continue
    except BaseException:  # noqa: BLE001 - whatever it is, it is a defect
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(_DEFECT)
    os._exit(0)
