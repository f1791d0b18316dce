# SPDX-License-Identifier: Apache-2.0
"""The sandwich's machine code is what an assembler makes of the mnemonics beside it."""

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from ipitrace.clock import SANDWICH_LISTING

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def assembled(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The bytes of each line, as `as` lists them."""
    if shutil.which("as") is None:
        pytest.skip("no assembler")
    directory: Path = tmp_path_factory.mktemp("sandwich")
    text = "".join(f"{mnemonic}\n" for _octets, mnemonic in SANDWICH_LISTING)
    (directory / "sandwich.s").write_text(text)
    listing = subprocess.run(
        [
            *("as", "--64", "-msyntax=intel", "-mnaked-reg", "-aln"),
            *("--listing-lhs-width=4", "-o", "sandwich.o", "sandwich.s"),
        ],
        cwd=directory,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    lines = re.findall(r"^ *(\d+) ([0-9a-f]{4}) ([0-9A-F ]+?) +\t", listing, re.MULTILINE)
    assert [int(number) for number, _at, _octets in lines] == list(
        range(1, len(SANDWICH_LISTING) + 1)
    )
    return [bytes.fromhex(octets) for _number, _at, octets in lines]


def test_every_instruction_is_the_one_beside_it(assembled: list[bytes]) -> None:
    written = [(bytes.fromhex(octets), text) for octets, text in SANDWICH_LISTING]
    said = [(octets, text) for octets, (_, text) in zip(assembled, SANDWICH_LISTING, strict=True)]
    assert written == said


def test_what_the_callee_owns_is_given_back_in_order() -> None:
    text = [mnemonic for _octets, mnemonic in SANDWICH_LISTING]
    pushed = [line.split()[1] for line in text if line.startswith("push")]
    popped = [line.split()[1] for line in text if line.startswith("pop")]
    assert popped == pushed[::-1]
    # The return address and an odd number of pushes: the call finds the stack aligned.
    assert (1 + len(pushed)) % 2 == 0
