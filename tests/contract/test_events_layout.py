# SPDX-License-Identifier: Apache-2.0
"""abi/events.py and words/events.py say what bpf/ipitrace_events.h says, asked of a C compiler."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ipitrace.abi import events as layout
from ipitrace.base import resources
from ipitrace.words.events import NR_KINDS, Kind

HEADER = "ipitrace_events.h"

STRUCTS = {"ipitrace_event": layout.RING_EVENT, "ipitrace_head": layout.RING_HEAD}


def enumerators() -> list[str]:
    text = (resources.bpf_dir() / HEADER).read_text()
    return re.findall(r"^\s+IPITRACE_(\w+)\s*=", text, re.MULTILINE)


@pytest.fixture(scope="module")
def said_by_c(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Each sizeof, offsetof and enumerator, as the compiler sees it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    questions = {f"sizeof {name}": f"sizeof(struct {name})" for name in STRUCTS}
    for name, dtype in STRUCTS.items():
        for member in dtype.names or ():
            questions[f"{name}.{member}"] = f"offsetof(struct {name}, {member})"
            questions[f"sizeof {name}.{member}"] = f"sizeof(((struct {name} *)0)->{member})"
    questions |= {name: f"IPITRACE_{name}" for name in enumerators()}
    lines = "\n".join(f'printf("{key}=%zu\\n", (size_t){c});' for key, c in questions.items())
    directory = tmp_path_factory.mktemp("layout")
    (directory / "ask.c").write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <stdint.h>\n"
        "typedef uint64_t __u64; typedef uint32_t __u32; typedef uint16_t __u16;\n"
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
    text = (resources.bpf_dir() / HEADER).read_text()
    body = re.search(rf"struct {name} {{(.*?)\n}};", text, re.DOTALL)
    assert body is not None
    members = re.findall(r"__u\d+ (\w+)(?:\[\d+\])?;", body[1])
    assert members == list(STRUCTS[name].names or ())


def test_kinds_have_their_numbers(said_by_c: dict[str, int]) -> None:
    assert {kind.name: kind.value for kind in Kind} | {"NR_KINDS": NR_KINDS} == {
        name: said_by_c[name] for name in enumerators()
    }


def test_host_event_keeps_the_ring_record_and_adds_where_it_came_from() -> None:
    assert layout.HOST_EVENT.names == (*(layout.RING_EVENT.names or ()), "vcpu", "kind")
    for name in layout.RING_EVENT.names or ():
        assert layout.HOST_EVENT[name] == layout.RING_EVENT[name]
    assert np.iinfo(layout.HOST_EVENT["kind"]).max >= NR_KINDS


def test_the_header_is_where_resources_says() -> None:
    assert (Path(resources.bpf_dir()) / HEADER).is_file()
    assert (resources.bpf_dir() / "stubs/include/linux/kconfig.h").is_file()
    assert resources.guest_tools_dir().is_dir()
