# SPDX-License-Identifier: Apache-2.0
"""Names of VM exit reasons, spelled as the kernel's kvm_exit tracepoint prints them.

The kernel prints a number without a name for an exit that KVM never enables, and for a reason
newer than the running kernel. The name is then that of the manual, in the kernel's style.
"""

from enum import IntEnum
from typing import Final


class Isa(IntEnum):
    """The kvm_exit tracepoint's `isa` field (KVM_ISA_VMX, KVM_ISA_SVM in arch/x86/kvm/trace.h)."""

    VMX = 1
    SVM = 2


# Numbers: Intel SDM vol. 3C, appendix C, table C-1. Spelling: print format of kvm_exit in
# Linux 6.18, which comes from VMX_EXIT_REASONS in arch/x86/include/uapi/asm/vmx.h.
# Old kernels printed 7 as PENDING_INTERRUPT. Not in the kernel's list: 5, 6, 11, 17,
# 65, 66, 69-73, 76 and 78-81 (Xen's vmx.h gives 78-81 the same numbers). 76 has a number there
# since 6.18 and no name. 71 is from the TDX module's source (vm_exit_basic_reason_e).
VMX_REASONS: Final[dict[int, str]] = {
    0: "EXCEPTION_NMI",
    1: "EXTERNAL_INTERRUPT",
    2: "TRIPLE_FAULT",
    3: "INIT_SIGNAL",
    4: "SIPI_SIGNAL",
    5: "IO_SMI",
    6: "OTHER_SMI",
    7: "INTERRUPT_WINDOW",
    8: "NMI_WINDOW",
    9: "TASK_SWITCH",
    10: "CPUID",
    11: "GETSEC",
    12: "HLT",
    13: "INVD",
    14: "INVLPG",
    15: "RDPMC",
    16: "RDTSC",
    17: "RSM",
    18: "VMCALL",
    19: "VMCLEAR",
    20: "VMLAUNCH",
    21: "VMPTRLD",
    22: "VMPTRST",
    23: "VMREAD",
    24: "VMRESUME",
    25: "VMWRITE",
    26: "VMOFF",
    27: "VMON",
    28: "CR_ACCESS",
    29: "DR_ACCESS",
    30: "IO_INSTRUCTION",
    31: "MSR_READ",
    32: "MSR_WRITE",
    33: "INVALID_STATE",
    34: "MSR_LOAD_FAIL",
    36: "MWAIT_INSTRUCTION",
    37: "MONITOR_TRAP_FLAG",
    39: "MONITOR_INSTRUCTION",
    40: "PAUSE_INSTRUCTION",
    41: "MCE_DURING_VMENTRY",
    43: "TPR_BELOW_THRESHOLD",
    44: "APIC_ACCESS",
    45: "EOI_INDUCED",
    46: "GDTR_IDTR",
    47: "LDTR_TR",
    48: "EPT_VIOLATION",
    49: "EPT_MISCONFIG",
    50: "INVEPT",
    51: "RDTSCP",
    52: "PREEMPTION_TIMER",
    53: "INVVPID",
    54: "WBINVD",
    55: "XSETBV",
    56: "APIC_WRITE",
    57: "RDRAND",
    58: "INVPCID",
    59: "VMFUNC",
    60: "ENCLS",
    61: "RDSEED",
    62: "PML_FULL",
    63: "XSAVES",
    64: "XRSTORS",
    65: "PCONFIG",
    66: "SPP_EVENT",
    67: "UMWAIT",
    68: "TPAUSE",
    69: "LOADIWKEY",
    70: "ENCLV",
    71: "SGX_CONFLICT",
    72: "ENQCMD",
    73: "ENQCMDS",
    74: "BUS_LOCK",
    75: "NOTIFY",
    76: "SEAMCALL",
    77: "TDCALL",
    78: "RDMSRLIST",
    79: "WRMSRLIST",
    80: "URDMSR",
    81: "UWRMSR",
    84: "MSR_READ_IMM",
    85: "MSR_WRITE_IMM",
}

# Intel SDM vol. 3C, "Basic VM-exit information": the exit reason field's bits above 15,
# the same bits as in KVM's union vmx_exit_reason (arch/x86/kvm/vmx/common.h).
VMX_FLAGS: Final[dict[int, str]] = {
    26: "bus-lock",
    27: "enclave",
    28: "pending-mtf",
    29: "vmx-root",
    31: "failed-entry",
}
VMX_BASIC_REASON_MASK: Final = 0xFFFF

_SVM_EXCEPTION_BASE: Final = 0x40
_SVM_EXCEPTIONS: Final[dict[int, str]] = {
    0: "DE",
    1: "DB",
    2: "NMI",
    3: "BP",
    4: "OF",
    5: "BR",
    6: "UD",
    7: "NM",
    8: "DF",
    10: "TS",
    11: "NP",
    12: "SS",
    13: "GP",
    14: "PF",
    16: "MF",
    17: "AC",
    18: "MC",
    19: "XF",
    21: "CP",
    28: "HV",
    29: "VC",
    30: "SX",
}

# Numbers: AMD APM vol. 2, appendix C, "SVM intercept exit codes". Spelling: print format of
# kvm_exit in Linux 6.18, which comes from SVM_EXIT_REASONS in
# arch/x86/include/uapi/asm/svm.h ("read_rt" is TR, the kernel's own spelling).
# Not in the kernel's 6.18 list: odd control registers, 0x8c, 0x8e, 0xa0, 0xa1, 0xa3, 0xa4,
# 0x407 (posted to the KVM list as pml_full), and exceptions 2 and above 19. Numbers of the same
# header without a name there: 0x80000018, 0x8000001a, 0x8000fffe, 0x8000ffff and SVM_EXIT_SW.
# 0x80000014 is from the GHCB specification.
SVM_REASONS: Final[dict[int, str]] = (
    {n: f"read_cr{n}" for n in range(16)}
    | {0x10 + n: f"write_cr{n}" for n in range(16)}
    | {0x20 + n: f"read_dr{n}" for n in range(16)}
    | {0x30 + n: f"write_dr{n}" for n in range(16)}
    | {_SVM_EXCEPTION_BASE + n: f"{name} excp" for n, name in _SVM_EXCEPTIONS.items()}
    | {
        0x60: "interrupt",
        0x61: "nmi",
        0x62: "smi",
        0x63: "init",
        0x64: "vintr",
        0x65: "cr0_sel_write",
        0x66: "read_idtr",
        0x67: "read_gdtr",
        0x68: "read_ldtr",
        0x69: "read_rt",
        0x6A: "write_idtr",
        0x6B: "write_gdtr",
        0x6C: "write_ldtr",
        0x6D: "write_rt",
        0x6E: "rdtsc",
        0x6F: "rdpmc",
        0x70: "pushf",
        0x71: "popf",
        0x72: "cpuid",
        0x73: "rsm",
        0x74: "iret",
        0x75: "swint",
        0x76: "invd",
        0x77: "pause",
        0x78: "hlt",
        0x79: "invlpg",
        0x7A: "invlpga",
        0x7B: "io",
        0x7C: "msr",
        0x7D: "task_switch",
        0x7E: "ferr_freeze",
        0x7F: "shutdown",
        0x80: "vmrun",
        0x81: "hypercall",
        0x82: "vmload",
        0x83: "vmsave",
        0x84: "stgi",
        0x85: "clgi",
        0x86: "skinit",
        0x87: "rdtscp",
        0x88: "icebp",
        0x89: "wbinvd",
        0x8A: "monitor",
        0x8B: "mwait",
        0x8C: "mwait_cond",
        0x8D: "xsetbv",
        0x8E: "rdpru",
        0x8F: "write_efer_trap",
    }
    | {0x90 + n: f"write_cr{n}_trap" for n in range(16)}
    | {
        0xA0: "invlpgb",
        0xA1: "invlpgb_illegal",
        0xA2: "invpcid",
        0xA3: "mcommit",
        0xA4: "tlbsync",
        0xA5: "buslock",
        0xA6: "idle-halt",
        0x400: "npf",
        0x401: "avic_incomplete_ipi",
        0x402: "avic_unaccelerated_access",
        0x403: "vmgexit",
        0x407: "pml_full",
        0x80000001: "vmgexit_mmio_read",
        0x80000002: "vmgexit_mmio_write",
        0x80000003: "vmgexit_nmi_complete",
        0x80000004: "vmgexit_ap_hlt_loop",
        0x80000005: "vmgexit_ap_jump_table",
        0x80000010: "vmgexit_page_state_change",
        0x80000011: "vmgexit_guest_request",
        0x80000012: "vmgexit_ext_guest_request",
        0x80000013: "vmgexit_ap_creation",
        0x80000014: "vmgexit_hv_doorbell_page",
        0x80000018: "vmgexit_snp_run_vmpl",
        0x8000001A: "vmgexit_savic",
        0x8000FFFD: "vmgexit_hypervisor_feature",
        0x8000FFFE: "vmgexit_term_request",
        0x8000FFFF: "vmgexit_unsupported_event",
        0xF0000000: "sw",
        0xFFFFFFFF: "invalid_guest_state",
    }
)
PAUSE_EXITS: Final = (VMX_REASONS[40], SVM_REASONS[0x77])
"""The names of exits that a loop of PAUSE causes (pause-loop exiting, AMD's pause filter)."""
_U32: Final = 0xFFFFFFFF


def reason_name(isa: int, reason: int) -> str:
    """Name an exit reason as the kvm_exit tracepoint delivers it.

    `isa` is 1 (VMX) or 2 (SVM). Only the low 32 bits of `reason` count: the tracepoint's
    field is 32 bits wide, and SVM's VMEXIT_INVALID is -1 in any width. VMX flag bits follow
    the name ("INVALID_STATE+failed-entry"). A reason without a name becomes "vmx:0x23",
    "svm:0x404" or, for an unknown `isa`, "isa3:0x1". The function never raises an exception,
    because a recording made on a newer kernel must still be printable.
    """
    reason &= _U32
    if isa == Isa.VMX:
        basic = reason & VMX_BASIC_REASON_MASK
        names = [VMX_REASONS.get(basic, f"vmx:{basic:#x}")]
        names += [VMX_FLAGS.get(bit, f"bit{bit}") for bit in range(16, 32) if reason & (1 << bit)]
        return "+".join(names)
    if isa == Isa.SVM:
        return SVM_REASONS.get(reason, f"svm:{reason:#x}")
    return f"isa{isa}:{reason:#x}"
