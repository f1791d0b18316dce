# SPDX-License-Identifier: Apache-2.0
"""The KVM interface of passthrough IPIs, which only patched kernels have.

It is defined by the patches in lab/kernel/patches. KVM_CHECK_EXTENSION reports whether this host
has it and allows it to this process.
"""

import struct
from typing import Final

from ipitrace.host.kvm_extensions import why_not_offered

CAP_X86_PASSTHROUGH_IPI: Final = 0x50490000
KVM_CPUID_FEATURES: Final = 0x40000001
KVM_FEATURE_PASSTHROUGH_IPI: Final = 30

FOREIGN: Final = struct.Struct("<4I")
"""struct mg_foreign: the ICR's low half, an APIC id, the number of writes, and the ICR to use."""


def why_unsupported() -> str | None:
    """Why no guest of this host can send by descriptors, as far as is known; None if one can."""
    return why_not_offered("posted-interrupt descriptors for sending", CAP_X86_PASSTHROUGH_IPI)
