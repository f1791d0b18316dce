# SPDX-License-Identifier: Apache-2.0
"""How often something must have been seen before watch says what a VM or a host never does.

Of n things seen none was of a kind: with 95 % confidence at most 1 - 0.05**(1/n) of all are
(the upper bound of Clopper and Pearson for no success in n; some 3/n, the "rule of three").
That holds if those seen are a fair sample of all.
"""

import math
from typing import Final

CONFIDENCE: Final = 0.95
MOST_SHARE: Final = 0.01
"""What is claimed never to happen does so in fewer cases than this share."""
ENOUGH: Final = math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - MOST_SHARE))
"""299: the least n of which none must have been of the kind."""

_CONFIDENT: Final = f"{100 * CONFIDENCE:g} % confidence"
_SHOWN: Final = 10_000  # shares are told in hundredths of a per cent


def most_share(n: int) -> float:
    """The largest share that a kind of which none was among `n` may have, with CONFIDENCE."""
    return 1.0 - (1.0 - CONFIDENCE) ** (1 / n) if n else 1.0


def bound_in_words(n: int) -> str:
    """most_share(), rounded up: "at most 1.00 % of all (95 % confidence)"."""
    share = math.ceil(most_share(n) * _SHOWN) / _SHOWN
    return f"at most {100 * share:.2f} % of all ({_CONFIDENT})"


NEEDED: Final = f"{ENOUGH} would show that it is less than {100 * MOST_SHARE:g} % ({_CONFIDENT})"
"""What is said where fewer were seen."""


class ExitEvidence:
    """Whether kvm_exit fires on this host, for whichever VM.

    A CPU without VMX and SVM runs guests by a KVM whose kvm_exit need not fire; there it counts
    as silent until it was seen. Elsewhere that takes ENOUGH events without one: each entry to a
    guest is an event, and is followed by an exit.
    """

    def __init__(self, isa: int) -> None:
        """`isa` is what tracer.kernel.host_isa() says."""
        self._presumed = not isa
        self._events = 0
        self.fired = False

    def note(self, n_events: int) -> None:
        """So many events are counted by now, as far as they were not forgotten."""
        self._events = max(self._events, n_events)

    @property
    def silent(self) -> bool:
        """Whether kvm_exit is taken not to fire."""
        return not self.fired and (self._presumed or self._events >= ENOUGH)
