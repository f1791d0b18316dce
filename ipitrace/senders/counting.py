# SPDX-License-Identifier: Apache-2.0
"""Count, in a guest, which call sites send IPIs."""

from typing import Final

from ipitrace.base.errors import HostError
from ipitrace.base.foreign import plain
from ipitrace.senders.inside import COUNT, LAUNCH
from ipitrace.senders.model import Senders, missing
from ipitrace.senders.reading import MOST_BYTES, read_senders
from ipitrace.storm.guest_json import shown
from ipitrace.storm.transport.shell import QUICK_S, Shell

_NO_TRACING: Final = (
    "This needs tracefs, root, awk and setsid in the guest, and unshare if tracefs is not mounted."
)


def count_senders(shell: Shell, duration_s: float) -> Senders:
    """Count for `duration_s` seconds, and leave the guest as it was.

    Raises:
        HostError: the guest cannot be reached, its kernel has none of the tracepoints, or its
            answer is not valid.
    """
    most_s = duration_s + 2 * QUICK_S  # to begin, and to end
    done = shell.run(
        ["sh", "-c", LAUNCH, "sh", LAUNCH, COUNT, f"{duration_s:.3f}", f"{most_s:.3f}"],
        timeout_s=most_s,
        limit_bytes=MOST_BYTES,
    )
    if done.status != 0:
        why = plain(done.stderr) or f"no message, status {done.status}"
        raise HostError(f"The guest cannot count its senders: {why}", _NO_TRACING)
    try:
        senders = read_senders(done.stdout)
    except ValueError as error:
        raise HostError(
            f"The guest's answer about its senders is not valid: {shown(done.stdout)} "
            f"({plain(str(error))}).",
            "Check what sh, awk and sed print in the guest.",
        ) from error
    if all(source.method is None for source in senders.sources):
        names = "; ".join(missing(source.tracepoint for source in senders.sources))
        raise HostError(
            f"The guest's kernel, Linux {plain(senders.kernel)}, does not tell who sends: {names}.",
            "Boot a later kernel in the guest. `ipitrace watch` shows on the host which vCPUs send "
            "which vectors.",
        )
    return senders
