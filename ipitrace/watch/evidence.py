# SPDX-License-Identifier: Apache-2.0
"""How many observations watch needs before it reports that something never happens.

If none of n observed events is of a kind, then with 95 % confidence at most 1 - 0.05**(1/n) of
all events are (Clopper and Pearson's upper bound for no success in n; about 3/n, the "rule of
three"). This assumes that the observed events are a fair sample of all.
"""

import math
from typing import Final

CONFIDENCE: Final = 0.95
MOST_SHARE: Final = 0.01
"""What is reported as never happening does so in less than this share of cases."""
ENOUGH: Final = math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - MOST_SHARE))
"""299: the least number of events, none of the kind, that shows this."""

_CONFIDENT: Final = f"{100 * CONFIDENCE:g} % confidence"
_SHOWN: Final = 10_000  # shares are printed in hundredths of a per cent


def most_share(n: int) -> float:
    """The largest share, with CONFIDENCE, of a kind that none of `n` events had."""
    return 1.0 - (1.0 - CONFIDENCE) ** (1 / n) if n else 1.0


def bound_in_words(n: int) -> str:
    """most_share(), rounded up: "at most 1.00 % of all (95 % confidence)"."""
    share = math.ceil(most_share(n) * _SHOWN) / _SHOWN
    return f"at most {100 * share:.2f} % of all ({_CONFIDENT})"


NEEDED: Final = f"{ENOUGH} would show that it is less than {100 * MOST_SHARE:g} % ({_CONFIDENT})"
"""The text if fewer events were seen."""


class ExitEvidence:
    """Whether kvm_exit fires on this host, for any VM.

    On a CPU without VMX and SVM, kvm_exit of the KVM in use need not fire. It is then assumed
    silent until it fires. On other CPUs it is assumed silent after ENOUGH events without a
    kvm_exit: each entry to a guest is an event, and is followed by an exit.
    """

    def __init__(self, isa: int) -> None:
        """`isa` is the result of tracer.kernel.host_isa()."""
        self._presumed = not isa
        self._events = 0
        self.fired = False

    def note(self, n_events: int) -> None:
        """Note the number of events counted so far, without those of VMs that have ended."""
        self._events = max(self._events, n_events)

    @property
    def silent(self) -> bool:
        """Whether kvm_exit is assumed not to fire."""
        return not self.fired and (self._presumed or self._events >= ENOUGH)
