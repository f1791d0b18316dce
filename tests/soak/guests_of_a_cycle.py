# SPDX-License-Identifier: Apache-2.0
"""VMs that come and go while they are watched."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watching import LOOKS_WITHIN_S, Watch

_GUEST = Path(__file__).with_name("guest.py")
# (scenario, vCPUs, the most sends, cycles between sends, targets of a send)
_STORMS: Sequence[tuple[str, int, int, int, int]] = (
    ("unicast-running", 2, 20_000, 0, 1),
    ("unicast-blocked", 2, 400, 2_000_000, 1),
    ("self", 2, 20_000, 0, 1),
    ("broadcast-halted", 4, 2_000, 0, 3),
    ("broadcast", 8, 200, 0, 7),
)


@dataclass
class Outcome:
    """What became of the VMs so far.

    Attributes:
        witnessed: VMs whose storm was held against what the watch saw.
        ipis: of theirs, as the guests count.
        brief: VMs that were killed at once, or in mid-storm: they may have gone unseen.
        unmade: VMs that could not be held against anything, with why: none is called good.
        wrong: what does not add up, a sentence each.
    """

    witnessed: int
    ipis: int
    brief: int
    unmade: list[str]
    wrong: list[str]


class SoakGuest:
    """A micro-guest in a process of its own."""

    def __init__(self, chance: random.Random, environment: dict[str, str]) -> None:
        self.scenario, n_vcpus, most, pace_cycles, self.n_targets = chance.choice(_STORMS)
        words = [n_vcpus, chance.randint(most // 10, most), pace_cycles]
        self.process = subprocess.Popen(
            [sys.executable, _GUEST, self.scenario, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def cycle(chance: random.Random, watch: Watch, outcome: Outcome, env: dict[str, str]) -> None:
    """Some VMs come, storm one after the other while all are there, and go; others just die."""
    guests = [SoakGuest(chance, env) for _ in range(chance.randint(1, 4))]
    brief = [SoakGuest(chance, env) for _ in range(chance.randint(0, 2))]
    try:
        for guest in brief:
            time.sleep(chance.uniform(0.0, 0.7))
            guest.end()
            outcome.brief += 1
        for guest in guests:
            _witness(guest, watch, outcome)
    finally:
        for guest in (*guests, *brief):
            guest.end()


def _witness(guest: SoakGuest, watch: Watch, outcome: Outcome) -> None:
    pid = guest.process.pid
    if guest.hear() != "ready":
        outcome.unmade.append(f"{guest.scenario}: the guest did not come up")
        return
    before = watch.vm_after_now(pid, within_s=LOOKS_WITHIN_S)
    if before is None:
        outcome.wrong.append(f"{guest.scenario}: not seen in {LOOKS_WITHIN_S:.0f} s")
        return
    guest.go_on()
    if guest.hear() != "sent":
        outcome.unmade.append(f"{guest.scenario}: the storm did not end")
        return
    after = watch.vm_after_now(pid, within_s=LOOKS_WITHIN_S)
    guest.go_on()
    text = guest.hear()
    if not text:
        outcome.unmade.append(f"{guest.scenario}: the guest's storm failed")
    elif after is None:
        outcome.wrong.append(f"{guest.scenario}: gone from the watch while it was there")
    else:
        outcome.witnessed += 1
        _compare(guest, before, after, json.loads(text), outcome)


def _compare(
    guest: SoakGuest,
    before: dict[str, Any],
    after: dict[str, Any],
    told: dict[str, int],
    outcome: Outcome,
) -> None:
    """Hold what the watch counted against what the guest did."""

    def seen(name: str) -> int:
        return int(after[name]["total"]) - int(before[name]["total"])

    sends, ipis = told["sends"], told["sends"] * guest.n_targets
    outcome.ipis += ipis
    found = {name: seen(name) for name in ("sends", "ipis", "missed", "unplaced")}
    if found != {"sends": sends, "ipis": ipis, "missed": 0, "unplaced": 0}:
        outcome.wrong.append(f"{guest.scenario}: {found}, the guest sent {sends} ({told})")
