# SPDX-License-Identifier: Apache-2.0
"""Which extensions this host's KVM offers to this process (KVM_CHECK_EXTENSION)."""

import fcntl
import os
from functools import cache
from typing import Final

_CHECK_EXTENSION: Final = 0xAE03

CAP_HYPERV_SEND_IPI: Final = 161
CAP_HYPERV_CPUID: Final = 167
HYPERV_IPIS: Final = (CAP_HYPERV_SEND_IPI, CAP_HYPERV_CPUID)
"""What guests need to send IPIs by Hyper-V's hypercalls.

Linux has it since 4.20 (214ff83d4473, "KVM: x86: hyperv: implement PV IPI send hypercalls"), and
since 6.8 only if it was built with CONFIG_KVM_HYPERV.
"""


@cache
def offers(*extensions: int) -> bool:
    """Whether KVM reports all of these numbers (KVM_CAP_*).

    Raises:
        OSError: /dev/kvm cannot be opened.
    """
    fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    try:
        return all(fcntl.ioctl(fd, _CHECK_EXTENSION, number) > 0 for number in extensions)
    except OSError:
        return False
    finally:
        os.close(fd)


def why_not_offered(what: str, *extensions: int) -> str | None:
    """Why no guest of this host can have `what`, as far as is known; None if one can.

    Args:
        what: the name of the feature, for the reason.
        extensions: the numbers that KVM must report, all of them.
    """
    try:
        offered = offers(*extensions)
    except OSError as error:
        return (
            f"it is unknown whether the host offers {what}: "
            f"/dev/kvm cannot be opened ({error.strerror})"
        )
    return None if offered else f"the host offers no {what}"
