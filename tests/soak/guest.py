# SPDX-License-Identifier: Apache-2.0
"""`python guest.py SCENARIO VCPUS COUNT PACE`: a micro-guest that storms when it is told to.

It says "ready" before the first send that counts and "sent" after the last, each time waiting
for a line, and ends with what the guest itself counted, as JSON.
"""

import json
import sys

from ipitrace.storm.driver import Hooks, StormRequest
from ipitrace.storm.micro.driver import MicroGuest
from ipitrace.words.scenarios import select_scenarios

WARMUP = 1
LONGEST_S = 60.0


def main() -> None:
    """Boot, storm, tell."""
    name = sys.argv[1]
    n_vcpus, count, pace_cycles = map(int, sys.argv[2:])
    words = iter(("", "ready", "sent"))  # a mark comes before the warm-up, too

    def mark() -> None:
        word = next(words)
        if word:
            print(word, flush=True)
            sys.stdin.readline()

    (scenario,) = select_scenarios([name])
    request = StormRequest(scenario, n_vcpus, count, WARMUP, pace_cycles, LONGEST_S)
    storm = MicroGuest.prepare(n_vcpus, None).run(request, Hooks(mark=mark))
    told = {"sends": len(storm.sends), "handled": sum(storm.handled), "late": storm.incomplete}
    print(json.dumps(told), flush=True)


main()
