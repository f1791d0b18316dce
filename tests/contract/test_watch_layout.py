# SPDX-License-Identifier: Apache-2.0
"""abi/watch.py says what bpf/ipitrace_watch.h says, asked of a C compiler."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ipitrace.abi import watch as layout
from ipitrace.base import resources

HEADER = "ipitrace_watch.h"
STRUCTS = {
    "ipitrace_watch_cell": layout.WATCH_CELL,
    "ipitrace_watch_head": layout.WATCH_HEAD,
    "ipitrace_watch_claim": layout.WATCH_CLAIM,
}


def text() -> str:
    return (resources.bpf_dir() / HEADER).read_text()


def constants() -> list[str]:
    return re.findall(r"IPITRACE_WATCH_(?!H\b)(\w+)(?=\s*=|\s+\d|\s+0x)", text())


@pytest.fixture(scope="module")
def said_by_c(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    questions = {f"sizeof {name}": f"sizeof(struct {name})" for name in STRUCTS}
    for name, dtype in STRUCTS.items():
        for member in dtype.names or ():
            questions[f"{name}.{member}"] = f"offsetof(struct {name}, {member})"
            questions[f"sizeof {name}.{member}"] = f"sizeof(((struct {name} *)0)->{member})"
    questions |= {name: f"IPITRACE_WATCH_{name}" for name in constants()}
    lines = "\n".join(f'printf("{key}=%zu\\n", (size_t){c});' for key, c in questions.items())
    directory = tmp_path_factory.mktemp("layout")
    (directory / "ask.c").write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <stdint.h>\n"
        "typedef uint64_t __u64; typedef uint32_t __u32; typedef uint16_t __u16;\n"
        "typedef uint8_t __u8;\n"
        f'#include "{HEADER}"\nint main(void) {{ {lines} return 0; }}\n'
    )
    program = directory / "ask"
    subprocess.run(
        [compiler, "-Wall", "-Werror", f"-I{resources.bpf_dir()}", "-o", program, "ask.c"],
        cwd=directory,
        check=True,
    )
    answers = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {key: int(value) for key, value in (line.split("=") for line in answers.splitlines())}


@pytest.mark.parametrize("name", STRUCTS)
def test_every_member_lies_where_c_puts_it(name: str, said_by_c: dict[str, int]) -> None:
    dtype = STRUCTS[name]
    assert said_by_c[f"sizeof {name}"] == dtype.itemsize
    for member, (member_dtype, offset, *_) in (dtype.fields or {}).items():
        assert said_by_c[f"{name}.{member}"] == offset, member
        assert said_by_c[f"sizeof {name}.{member}"] == member_dtype.itemsize, member


@pytest.mark.parametrize("name", STRUCTS)
def test_no_member_is_missing(name: str) -> None:
    body = re.search(rf"struct {name} {{(.*?)\n}};", text(), re.DOTALL)
    assert body is not None
    members = re.findall(r"__u\d+ (\w+)(?:\[\w+(?: - 1)?\])?;", body[1])
    assert members == list(STRUCTS[name].names or ())


def test_the_numbers_are_the_same(said_by_c: dict[str, int]) -> None:
    expected = {what.name: what.value for what in layout.What}
    expected |= {total.name: total.value for total in layout.Total}
    expected |= {"NR_WHATS": layout.NR_WHATS, "NR_TOTALS": layout.NR_TOTALS}
    expected |= {f"SENT_BY_{sent_by.name}": sent_by.value for sent_by in layout.SentBy}
    # The name SENT_BY_SHIFT is that of a shift and of no way.
    expected |= {f"{name}_SHIFT": shift for name, (shift, _) in layout.WATCH_KEY.items()}
    expected |= {"TARGET_UNKNOWN": layout.WATCH_TARGET_UNKNOWN}
    assert {name: said_by_c[name] for name in constants()} == expected


def test_the_fields_of_a_key_do_not_overlap() -> None:
    taken = 0
    for shift, bits in layout.WATCH_KEY.values():
        field = (1 << bits) - 1 << shift
        assert not taken & field
        taken |= field
    assert taken < 1 << 64


def test_the_header_is_there() -> None:
    assert (Path(resources.bpf_dir()) / HEADER).is_file()
