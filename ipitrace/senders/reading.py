# SPDX-License-Identifier: Apache-2.0
"""Parse what the scripts print in the guest, which is not trusted."""

import re
from collections import Counter
from typing import Final

from ipitrace.senders.inside import FORMAT
from ipitrace.senders.model import TO_MASK, TO_ONE, TRACEPOINTS, Method, Sender, Senders, Source

MOST_BYTES: Final = 4 << 20
"""Three full histograms and MOST_LINES records have some 1 MiB."""

_MOST_CPUS: Final = 4096
_SYMBOL: Final = r"[\w.$+/]{1,200}(?: \[[\w-]{1,64}\])?"  # of a module: "name [module]"
_COUNT: Final = r"(\d{1,18})"
_NUMBER: Final = r"(\d{1,12}(?:\.\d{1,9})?)"
_EVENTS: Final = "|".join(one.event for one in TRACEPOINTS)
_NO_CALLBACK: Final = "0x0"  # %pS of NULL: smp_send_reschedule() gives no callback

_KERNEL: Final = re.compile(r"kernel ([!-~]{1,100})", re.ASCII)
_UPTIME: Final = re.compile(rf"uptime {_NUMBER} {_NUMBER}", re.ASCII)
_KEY: Final = re.compile(
    rf"histogram ({_EVENTS}) \{{ callsite: \[[0-9a-f]{{1,16}}\] ({_SYMBOL}) *, "
    rf"(?:callback|func): \[[0-9a-f]{{1,16}}\] ({_SYMBOL}) *\}} hitcount: *{_COUNT}",
    re.ASCII,
)
_DROPPED: Final = re.compile(rf"histogram ({_EVENTS}) +Dropped: {_COUNT}", re.ASCII)
_KNOWN: Final = re.compile(
    rf"histogram (?:{_EVENTS}) (?:|#.*|Totals:| +(?:Hits|Entries): \d+)", re.ASCII
)
_RECORD: Final = re.compile(
    rf"record {_COUNT} ({_EVENTS}):(?: cpumask=([0-9a-f,]{{1,{_MOST_CPUS}}}))? "
    rf"callsite=({_SYMBOL}) (?:callback|func)=({_SYMBOL})",
    re.ASCII,
)
_LOST: Final = re.compile(rf"(?:more|stat dropped events:) {_COUNT}", re.ASCII)
_MISSING: Final = re.compile(
    rf"missing ({'|'.join(re.escape(one.path) for one in TRACEPOINTS)})", re.ASCII
)

Key = tuple[str, str]


class _Found:
    """The lines so far."""

    def __init__(self) -> None:
        self.kernel = ""
        self.duration_s = 0.0
        self.missing: set[str] = set()
        self.histograms: dict[str, Counter[Key]] = {}
        self.dropped: Counter[str] = Counter()
        self.records: dict[str, Counter[Key]] = {}
        self.mask_cpus: Counter[Key] = Counter()
        self.lost = 0

    def take(self, line: str) -> None:
        """Add a line.

        Raises:
            ValueError: COUNT prints no such line.
        """
        for form, method in _FORMS:
            if match := form.fullmatch(line):
                method(self, *match.groups())
                return
        raise ValueError("it has a line of another form")

    def add_key(self, event: str, callsite: str, callback: str, count: str) -> None:
        self.histograms.setdefault(event, Counter())[callsite, callback] += int(count)

    def add_record(
        self, count: str, event: str, mask: str | None, callsite: str, callback: str
    ) -> None:
        if (mask is not None) != (event == TO_MASK.event):
            raise ValueError("a record has another event's fields")
        self.records.setdefault(event, Counter())[callsite, callback] += int(count)
        if mask is not None:
            cpus = int(mask.replace(",", "") or "0", 16).bit_count()
            self.mask_cpus[callsite, callback] += int(count) * cpus

    def add_dropped(self, event: str, count: str) -> None:
        self.histograms.setdefault(event, Counter())
        self.dropped[event] += int(count)

    def add_lost(self, count: str) -> None:
        self.lost += int(count)

    def add_kernel(self, release: str) -> None:
        self.kernel = release

    def add_uptime(self, begin: str, end: str) -> None:
        self.duration_s = float(end) - float(begin)

    def add_missing(self, path: str) -> None:
        self.missing.add(path)

    def add_nothing(self) -> None:
        """A line that has nothing more."""


_FORMS: Final = (
    (_KEY, _Found.add_key),
    (_RECORD, _Found.add_record),
    (_DROPPED, _Found.add_dropped),
    (_LOST, _Found.add_lost),
    (_KERNEL, _Found.add_kernel),
    (_UPTIME, _Found.add_uptime),
    (_MISSING, _Found.add_missing),
    (_KNOWN, _Found.add_nothing),
)


def read_senders(said: bytes) -> Senders:
    """What COUNT printed, with the most frequent senders first.

    Raises:
        ValueError: it is not what COUNT prints, or it is not complete.
    """
    first, *lines = said.decode("ascii", errors="replace").rstrip("\n").split("\n")
    if first != FORMAT or not lines or lines.pop() != "end":
        raise ValueError("it is not complete")
    found = _Found()
    for line in lines:
        found.take(line)
    if not found.kernel:
        raise ValueError("it names no kernel")
    counted = len(found.missing) < len(TRACEPOINTS)
    if counted and not found.duration_s > 0:
        raise ValueError("it took no time")
    return Senders(
        kernel=found.kernel,
        duration_s=found.duration_s,
        sources=tuple(_source(found, i) for i in range(len(TRACEPOINTS))),
        lost_records=found.lost,
    )


def _source(found: _Found, index: int) -> Source:
    tracepoint = TRACEPOINTS[index]
    if tracepoint.path in found.missing:
        return Source(tracepoint, None, 0, ())
    event = tracepoint.event
    records = found.records.get(event, Counter())
    exact = event in found.histograms
    counts = found.histograms[event] if exact else records
    senders = [
        Sender(
            callsite=callsite,
            callback=None if callback == _NO_CALLBACK else callback,
            count=count,
            targets=_targets(found, event, key),
        )
        for key, count in counts.items()
        for callsite, callback in [key]
        if count
    ]
    senders.sort(key=lambda sender: (-sender.count, sender.callsite, sender.callback or ""))
    method = Method.HISTOGRAM if exact else Method.RECORDS
    return Source(tracepoint, method, found.dropped[event], tuple(senders))


def _targets(found: _Found, event: str, key: Key) -> float | None:
    """The mean number of CPUs to which one event of `key` sends."""
    if event == TO_ONE.event:
        return 1.0
    if event != TO_MASK.event or not (recorded := found.records.get(event, Counter())[key]):
        return None
    return found.mask_cpus[key] / recorded
