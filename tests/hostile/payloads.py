# SPDX-License-Identifier: Apache-2.0
"""Builds payload.c, and runs ipitrace with it in the micro-guest's place.

The built payload itself is never touched: the child's loader is given another path.
"""

import re
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import harness

from ipitrace.base.resources import guest_tools_dir

SOURCE: Final = harness.HERE / "payload.c"
_MARKER: Final = b"MODEMODE"
# Those of guest-tools/microguest/Makefile that matter to code in kernel mode.
_FLAGS: Final = (
    *("-std=gnu11", "-Os", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-builtin"),
    *("-m64", "-march=x86-64", "-mgeneral-regs-only", "-mno-red-zone", "-mcmodel=small"),
    *("-fno-pic", "-fno-pie", "-fno-stack-protector", "-fcf-protection=none"),
    *("-fno-asynchronous-unwind-tables", "-fno-strict-aliasing", "-nostdlib", "-static"),
    *("-no-pie", "-Wl,--build-id=none", "-Wno-implicit-fallthrough"),
)
# A hung guest is given 8 s instead of 23, and a storm 15 s in all instead of 600.
_RUN: Final = """
import sys
from pathlib import Path
from ipitrace.storm.micro import driver, image
path = Path(sys.argv.pop(1))
driver.load_payload = lambda: image.load_payload(path)
driver._MAX_INCOMPLETE = 0
driver.limits.STORM_S = 15.0
from ipitrace.cli import main
main()
"""


def modes() -> list[str]:
    """The names in payload.c, in their order."""
    found = re.search(r"enum mode \{(.*?)\}", SOURCE.read_text(), re.DOTALL)
    assert found is not None
    return re.findall(r"\w+", found[1])


def build(folder: Path) -> bytes:
    """The payload in its first mode."""
    tools = guest_tools_dir()
    elf, flat = folder / "payload.elf", folder / "payload.bin"
    script = tools / "microguest" / "microguest.lds"
    includes = [f"-I{tools}", f"-I{tools / 'microguest'}"]
    command = ["cc", *_FLAGS, *includes, f"-Wl,-T,{script}", "-o", str(elf), str(SOURCE)]
    subprocess.run(command, check=True)
    subprocess.run(["objcopy", "-O", "binary", str(elf), str(flat)], check=True)
    return flat.read_bytes()


def in_mode(image: bytes, mode: str) -> bytes:
    """The payload in `mode`."""
    at = image.index(_MARKER) + len(_MARKER)
    return image[:at] + struct.pack("<I", modes().index(mode)) + image[at + 4 :]


def run(image: bytes, words: list[str], limit_s: float) -> harness.Outcome:
    """As harness.run_ipitrace, with `image` as the payload."""
    with tempfile.NamedTemporaryFile(prefix="payload-") as payload:
        payload.write(image)
        payload.flush()
        started_by = ["-c", _RUN, payload.name]
        return harness.run_ipitrace(words, started_by=started_by, limit_s=limit_s)
