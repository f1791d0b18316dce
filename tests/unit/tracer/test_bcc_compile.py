# SPDX-License-Identifier: Apache-2.0
"""What is kept of a compiler's and a verifier's messages."""

import os
import subprocess

import pytest

from ipitrace.tracer.bcc_compile import captured_stderr
from ipitrace.tracer.bpf_links import useful_line


def test_the_first_compile_error() -> None:
    text = "warning: odd\nexits.bpf.c:9:2: error: use of undeclared identifier 'x'\n1 error\n"
    assert useful_line(text) == "exits.bpf.c:9:2: error: use of undeclared identifier 'x'"


def test_the_verifiers_reason() -> None:
    text = "0: (bf) r6 = r1\ninvalid bpf_context access off=8 size=8\nprocessed 2 insns (limit 1)\n"
    assert useful_line(text) == "invalid bpf_context access off=8 size=8"


def test_long_lines_and_silence() -> None:
    assert len(useful_line("x" * 5000)) == 300
    assert useful_line("") == ""


def test_what_other_languages_write_is_captured_and_the_descriptor_restored(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with captured_stderr() as captured:
        subprocess.run(["sh", "-c", "echo from C >&2"], check=True)
    os.write(2, b"afterwards\n")
    assert captured.text == "from C\n"
    assert capfd.readouterr().err == "afterwards\n"


def test_it_is_restored_after_an_exception(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), captured_stderr():
        _ = os.write(2, b"inside\n") // 0
    os.write(2, b"outside\n")
    assert capfd.readouterr().err == "outside\n"
