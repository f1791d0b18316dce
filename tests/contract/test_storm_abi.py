# SPDX-License-Identifier: Apache-2.0
"""abi.py, image.py and kvm.py say what the C headers say, asked of a C compiler."""

import ctypes
import re
import shutil
import subprocess
from dataclasses import fields
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest

from ipitrace.abi import storm as abi
from ipitrace.base.resources import guest_tools_dir
from ipitrace.host import kvm_extensions
from ipitrace.storm.micro import image, kvm
from ipitrace.storm.micro.passthrough import FOREIGN
from ipitrace.words.scenarios import MICRO_GUEST_ONLY, Pattern, SendMethod, TargetState

HEADERS = ("storm_abi.h", "microguest/microguest.h")

STRUCTS: dict[str, np.dtype[np.void]] = {
    "storm_params": abi.PARAMS,
    "storm_status": abi.STATUS,
    "storm_send": abi.SEND,
    "storm_receipt": abi.RECEIPT,
    "storm_file": abi.FILE,
    "mg_vcpu": image.VCPU,
}
ENUMS: dict[str, type[IntEnum]] = {
    "storm_pattern": abi.StormPattern,
    "storm_target_state": abi.StormTargetState,
    "storm_send_method": abi.StormSendMethod,
    "storm_inject": abi.StormInject,
    "storm_state": abi.StormState,
}
ENUM_PREFIXES = {"storm_inject": "STORM_INJECT_"}

# Known to the payload's own C and assembly alone.
PRIVATE = re.compile(
    r"MG_(SERVICE_\w+|PARAMS_BURN|VCPU_(HANDLED|READY|NEXT_RECEIPT|END_RECEIPT|XAPIC|STACK)|START_\w+|HV_CALL_\w+)$"
)

KVM_STRUCTS = {
    "kvm_segment": kvm.Segment,
    "kvm_dtable": kvm.DescriptorTable,
    "kvm_sregs": kvm.SpecialRegisters,
    "kvm_regs": kvm.Registers,
    "kvm_device_attr": kvm._DeviceAttr,
}
KVM_NUMBERS = {
    **{
        f"KVM_{name}": getattr(kvm, f"_{name}")
        for name in (
            *("GET_API_VERSION", "CREATE_VM", "GET_VCPU_MMAP_SIZE", "GET_SUPPORTED_CPUID"),
            *("CREATE_VCPU", "SET_USER_MEMORY_REGION", "SET_TSS_ADDR", "CREATE_IRQCHIP", "RUN"),
            *("GET_REGS", "SET_REGS", "GET_SREGS", "SET_SREGS", "SET_CPUID2", "SET_MP_STATE"),
            *("ENABLE_CAP", "GET_TSC_KHZ", "GET_STATS_FD", "SET_DEVICE_ATTR", "GET_DEVICE_ATTR"),
            *("CAP_X2APIC_API", "GET_SUPPORTED_HV_CPUID"),
        )
    },
    **{
        f"KVM_{name}": getattr(kvm_extensions, name)
        for name in ("CAP_HYPERV_SEND_IPI", "CAP_HYPERV_CPUID")
    },
    **{f"KVM_EXIT_{reason.name}": reason for reason in kvm.ExitReason},
    "KVM_API_VERSION": kvm.API_VERSION,
    "KVM_X2APIC_API_USE_32BIT_IDS": kvm._X2APIC_API_USE_32BIT_IDS,
    "KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK": kvm._X2APIC_API_DISABLE_BROADCAST_QUIRK,
    "KVM_MP_STATE_RUNNABLE": kvm._MP_STATE_RUNNABLE,
    "KVM_VCPU_TSC_CTRL": 0,
    "KVM_VCPU_TSC_OFFSET": 0,
    "offsetof(struct kvm_run, immediate_exit)": kvm.RUN_IMMEDIATE_EXIT,
    "offsetof(struct kvm_run, exit_reason)": kvm.RUN_EXIT_REASON,
    "offsetof(struct kvm_run, io)": kvm.RUN_EXIT_DATA,
    "offsetof(struct kvm_run, io.port) - offsetof(struct kvm_run, io)": 2,
    "offsetof(struct kvm_run, io.data_offset) - offsetof(struct kvm_run, io)": 8,
    "sizeof(struct kvm_cpuid_entry2)": kvm._CPUID_ENTRY.size,
    "offsetof(struct kvm_cpuid2, entries)": 8,
    "sizeof(struct kvm_userspace_memory_region)": 32,
    "sizeof(struct kvm_enable_cap)": 104,
}


def header(name: str) -> str:
    return (guest_tools_dir() / name).read_text()


def defines(name: str) -> list[str]:
    return re.findall(r"^#define (\w+) [^\n]", header(name), re.MULTILINE)


def enumerators(enum: str) -> list[str]:
    body = re.search(rf"enum {enum} {{(.*?)\n}};", header("storm_abi.h"), re.DOTALL)
    assert body is not None
    return re.findall(r"^\s+(\w+) = ", body[1], re.MULTILINE)


def members(struct: str) -> list[str]:
    for name in HEADERS:
        body = re.search(rf"struct {struct} {{(.*?)\n}};", header(name), re.DOTALL)
        if body is not None:
            code = re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL)
            return re.findall(r"(\w+)(?:\[\d+\])?;", code)
    raise AssertionError(struct)


def ask(directory: Path, includes: str, questions: list[str]) -> dict[str, int]:
    """What the C compiler makes of each expression."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    lines = "\n".join(f'printf("%llu\\n", (unsigned long long)({q}));' for q in questions)
    (directory / "ask.c").write_text(
        f"#include <stddef.h>\n#include <stdio.h>\n{includes}\nint main(void) {{ {lines} }}\n"
    )
    command = [compiler, "-Wall", "-Werror", f"-I{guest_tools_dir()}", "-o", "ask", "ask.c"]
    subprocess.run(command, cwd=directory, check=True)
    told = subprocess.run([directory / "ask"], check=True, capture_output=True, text=True).stdout
    return dict(zip(questions, map(int, told.split()), strict=True))


@pytest.fixture(scope="module")
def said_by_c(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    questions = [name for file in HEADERS for name in defines(file)]
    for struct in (*STRUCTS, "mg_header", "mg_start", "mg_foreign", "mg_hv_call"):
        questions.append(f"sizeof(struct {struct})")
        for member in members(struct):
            questions.append(f"offsetof(struct {struct}, {member})")
            questions.append(f"sizeof(((struct {struct} *)0)->{member})")
    questions += [name for enum in ENUMS for name in enumerators(enum)]
    includes = "\n".join(f'#include "{file}"' for file in HEADERS)
    return ask(tmp_path_factory.mktemp("storm_abi"), includes, questions)


@pytest.mark.parametrize("struct", STRUCTS)
def test_every_member_lies_where_c_puts_it(struct: str, said_by_c: dict[str, int]) -> None:
    dtype = STRUCTS[struct]
    assert list(dtype.names or ()) == members(struct)
    assert said_by_c[f"sizeof(struct {struct})"] == dtype.itemsize
    for member, (kind, offset, *_) in (dtype.fields or {}).items():
        assert said_by_c[f"offsetof(struct {struct}, {member})"] == offset, member
        assert said_by_c[f"sizeof(((struct {struct} *)0)->{member})"] == kind.itemsize, member


@pytest.mark.parametrize("enum", ENUMS)
def test_enumerators_have_their_names_and_numbers(enum: str, said_by_c: dict[str, int]) -> None:
    prefix = ENUM_PREFIXES.get(enum, "STORM_")
    said = {name.removeprefix(prefix): said_by_c[name] for name in enumerators(enum)}
    assert said == {one.name: one.value for one in ENUMS[enum]}


def test_no_enum_or_struct_is_without_its_mirror() -> None:
    text = "".join(header(name) for name in HEADERS)
    assert set(re.findall(r"^enum (\w+) {", text, re.MULTILINE)) == set(ENUMS)
    structs = set(re.findall(r"^struct (\w+) {", text, re.MULTILINE))
    assert structs == {*STRUCTS, "mg_header", "mg_start", "mg_foreign", "mg_hv_call"}


def test_the_abi_version_and_its_marks(said_by_c: dict[str, int]) -> None:
    assert said_by_c["STORM_ABI_VERSION"] == abi.ABI_VERSION
    assert said_by_c["STORM_ALL_BUT_SELF"] == abi.ALL_BUT_SELF
    assert said_by_c["STORM_ALL"] == abi.ALL
    assert f'#define STORM_FILE_MAGIC "{abi.FILE_MAGIC.decode()}"\n' in header("storm_abi.h")


def test_the_memory_map_is_the_same_on_both_sides(said_by_c: dict[str, int]) -> None:
    in_c = {name for name in defines("microguest/microguest.h") if not PRIVATE.match(name)}
    in_python = {name for name in vars(image) if name.startswith("MG_")}
    assert in_c == in_python
    for name in in_c:
        assert getattr(image, name) == said_by_c[name], name


def test_what_the_assembly_calls_the_members_of_a_vcpu(said_by_c: dict[str, int]) -> None:
    for member in ("handled", "ready", "next_receipt", "end_receipt", "xapic", "stack"):
        offset = said_by_c[f"offsetof(struct mg_vcpu, {member})"]
        assert said_by_c[f"MG_VCPU_{member.upper()}"] == offset


def test_the_tables_of_the_vmm_do_not_overlap_the_payload(said_by_c: dict[str, int]) -> None:
    n = said_by_c["MG_MAX_VCPUS"]
    regions = sorted(
        [
            *((at, 0x1000) for at in (image._PML4, image._PDPT, image._PD_LOW, image._PD_HIGH)),
            (image._GDT, image._FIRST_TSS_SELECTOR + 16 * n),
            (image._IDT, 256 * 16),
            (image._TSS, n * image._TSS_SIZE),
            (image.MG_LOAD, image.MG_PARAMS - image.MG_LOAD),
            (image.MG_PARAMS, abi.PARAMS.itemsize),
            (image.MG_STATUS, abi.STATUS.itemsize),
            (image.MG_START, said_by_c["sizeof(struct mg_start)"]),
            (image.MG_FOREIGN, said_by_c["sizeof(struct mg_foreign)"]),
            (image.MG_VCPUS, n * said_by_c["MG_VCPU_SIZE"]),
            (image.MG_HV_PAGE, image._PAGE),
            (image.MG_HV_CALL, said_by_c["sizeof(struct mg_hv_call)"]),
            (image._STACKS, n * image._STACK_SIZE),
            (image._LOGS, 1),
        ]
    )
    ends = [at + size for at, size in regions[:-1]]
    starts = [at for at, _ in regions[1:]]
    assert all(end <= start for end, start in zip(ends, starts, strict=True)), regions


def test_the_payloads_header(said_by_c: dict[str, int]) -> None:
    named = members("mg_header")
    assert named[:3] == ["jump", "magic", "abi_version"]
    assert named[3:-1] == [field.name for field in fields(image.Payload)][1:]
    assert named[-1] == "size"
    assert said_by_c["sizeof(struct mg_header)"] == image._HEADER.size
    assert said_by_c["sizeof(struct mg_foreign)"] == FOREIGN.size
    assert said_by_c["offsetof(struct mg_header, magic)"] == 8
    assert said_by_c["offsetof(struct mg_header, abi_version)"] == 16


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """guest-tools, built from its sources."""
    if shutil.which("make") is None or shutil.which("cc") is None:
        pytest.skip("no make or no C compiler")
    directory = tmp_path_factory.mktemp("built") / "guest-tools"
    leave = shutil.ignore_patterns("*.o", "*.elf", "*.bin")
    shutil.copytree(guest_tools_dir(), directory, ignore=leave)
    subprocess.run(["make", "-s", "-C", directory / "microguest"], check=True)
    return directory / "microguest"


def test_the_payload_that_is_measured_is_the_one_in_the_sources(built: Path) -> None:
    fresh = image.load_payload(built / "microguest.bin")
    assert fresh.sha256 == image.load_payload().sha256


def test_the_payloads_header_names_its_symbols(built: Path) -> None:
    listing = subprocess.run(
        ["nm", built / "microguest.elf"], check=True, capture_output=True, text=True
    ).stdout
    address = {name: int(at, 16) for at, _kind, name in map(str.split, listing.splitlines())}
    payload = image.load_payload(built / "microguest.bin")
    assert address["_start"] == image.MG_LOAD
    for field in fields(payload)[1:]:
        assert address[field.name] - image.MG_LOAD == getattr(payload, field.name), field.name
    assert address["payload_end"] - image.MG_LOAD == len(payload.image)


def test_every_exception_entry_has_its_own_slot(built: Path) -> None:
    """Slot n of 16 bytes pushes n last, whatever the assembler made of the alignment."""
    payload = image.load_payload(built / "microguest.bin")
    pushes_error = {8, 10, 11, 12, 13, 14, 17, 21, 29, 30}  # SDM vol. 3A, table 6-1; AMD's #VC, #SX
    for vector in range(32):
        at = payload.exception_entries + 16 * vector
        code = payload.image[at : at + 4]
        push_vector = bytes((0x6A, vector))
        expected = push_vector if vector in pushes_error else b"\x6a\x00" + push_vector
        assert code.startswith(expected), vector


@pytest.fixture(scope="module")
def said_by_linux(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    if not Path("/usr/include/linux/kvm.h").exists():
        pytest.skip("no linux/kvm.h")
    questions = list(KVM_NUMBERS)
    for struct, mirror in KVM_STRUCTS.items():
        questions.append(f"sizeof(struct {struct})")
        questions += [
            f"offsetof(struct {struct}, {field[0]})"
            for field in mirror._fields_
            if field[0] != "padding"
        ]
    directory = tmp_path_factory.mktemp("kvm")
    return ask(directory, "#include <linux/kvm.h>", questions)


@pytest.mark.parametrize("struct", KVM_STRUCTS)
def test_kvm_structures(struct: str, said_by_linux: dict[str, int]) -> None:
    mirror = KVM_STRUCTS[struct]
    assert said_by_linux[f"sizeof(struct {struct})"] == ctypes.sizeof(mirror)
    for name, *_ in mirror._fields_:
        if name != "padding":
            offset = getattr(mirror, name).offset
            assert said_by_linux[f"offsetof(struct {struct}, {name})"] == offset, name


@pytest.mark.parametrize("what", KVM_NUMBERS)
def test_kvm_numbers(what: str, said_by_linux: dict[str, int]) -> None:
    assert said_by_linux[what] == KVM_NUMBERS[what]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("patterns", set(Pattern) - MICRO_GUEST_ONLY),
        ("states", set(TargetState) - MICRO_GUEST_ONLY),
        ("methods", set(SendMethod) - MICRO_GUEST_ONLY),
    ],
)
def test_the_helper_of_linux_guests_knows_the_words(table: str, words: set[str]) -> None:
    source = (guest_tools_dir() / "ipitrace_storm/helper_options.c").read_text()
    body = re.search(rf"const struct name {table}\[\] = {{(.*?)\n}};", source, re.DOTALL)
    assert body is not None
    assert set(re.findall(r'{"([\w-]+)", STORM_', body[1])) == words
