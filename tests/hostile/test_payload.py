# SPDX-License-Identifier: Apache-2.0
"""A malicious payload in the micro-guest's place, on this machine's KVM.

Each mode of payload.c ends in bounded time and memory, with exit code 4 and the reason; only
those that leave the truth behind in the end are measured, and their numbers are right.
"""

import json
from collections.abc import Iterator

import payloads
import pytest
from harness import Ahead, Outcome, assert_harmless

from ipitrace.base.errors import ExitCode

pytestmark = pytest.mark.live("kvm")

COUNT = 120
RUN = [
    *("run", "--no-trace", "--json", "--scenario", "unicast-running"),
    *("--count", str(COUNT), "--repeat", "1", "-o", "recording"),
]
LIMIT_S = 90.0
MODES = payloads.modes()

# They tell the truth in the end.
HARMLESS = {"honest", "absurd_while_running", "params_overwritten"}
# What the VMM finds depends on when it stops the vCPU that goes on writing; and some KVMs
# take no TSC from a guest. What is measured then is right.
EITHER = {"to_and_fro_until_the_end", "changed_after_done", "tsc_set_back"}
IMPOSSIBLE = "The guest's records cannot be true: "
SAID = {
    "sent_huge": f"{IMPOSSIBLE}it reports the end after 18446744073709551615 of 220 sends",
    "sent_zero": f"{IMPOSSIBLE}it reports the end after 0 of 220 sends",
    "sent_one_more": f"{IMPOSSIBLE}it reports the end after 221 of 220 sends",
    "incomplete_huge": f"{IMPOSSIBLE}0 measured sends were not acknowledged, and with 100",
    "progress_forever": "The guest hung",
    "progress_to_and_fro": "The guest hung",
    "progress_in_drips": "The guest's storm did not end within 15 s",
    "done_at_once": "vCPU 0 reported DONE after BOOTING",
    "done_without_measuring": "vCPU 0 reported DONE after WARMING_UP",
    "done_without_records": f"{IMPOSSIBLE}a send has number 0 instead of 100",
    "done_by_a_target": "vCPU 1 reported DONE after MEASURING",
    "done_in_warm_up": "vCPU 0 reported DONE after WARMING_UP",
    "warming_up_for_ever": "vCPU 0 reported WARMING_UP after WARMING_UP",
    "fault_made_up": "The guest took exception 4294967295",
    "gave_up_made_up": "The guest gave up: 4294967295 IPIs",
    "log_ends_at_zero": f"{IMPOSSIBLE}vCPU 1 reports that its log ends -",
    "log_ends_beyond": f"{IMPOSSIBLE}vCPU 1 reports that its log ends 1844674",
    "log_ends_between_records": f"{IMPOSSIBLE}vCPU 1 reports that its log ends 5268 bytes after",
    "log_ends_in_anothers": f"{IMPOSSIBLE}vCPU 1 reports that its log ends -",
    "sender_has_a_log": f"{IMPOSSIBLE}",
    "handled_none": f"{IMPOSSIBLE}vCPU 1 recorded 120 handler entries but counted -100",
    "handled_too_many": f"{IMPOSSIBLE}vCPU 1 recorded 120 handler entries but counted 18446744",
    "stamps_zero": f"{IMPOSSIBLE}a send_tsc is 0",
    "stamps_overflow": f"{IMPOSSIBLE}a ack_tsc is 18446744073709551615",
    "stamps_alike": f"{IMPOSSIBLE}send 101 began 0 cycles after",
    "stamps_far_apart": f"{IMPOSSIBLE}they take ",
    "send_ends_before_it_begins": f"{IMPOSSIBLE}send 100 was over 500 cycles before it began",
    "acknowledged_before_it_was_handled": f"{IMPOSSIBLE}when send 100 was acknowledged, 1 IPIs",
    "never_acknowledged": f"{IMPOSSIBLE}120 measured sends were not acknowledged",
    "handled_before_all": f"{IMPOSSIBLE}when send 100 was acknowledged, 1 IPIs",
    "eoi_before_handler": f"{IMPOSSIBLE}on vCPU 1 a handler's EOI came",
    "numbers_alike": f"{IMPOSSIBLE}a send has number 0 instead of 100",
    "handlers_numbered_alike": f"{IMPOSSIBLE}on vCPU 1 handler entry 0 follows 0",
    "wrong_target": f"{IMPOSSIBLE}send 100 went to vCPU 9",
    "wrong_sender": f"{IMPOSSIBLE}send 100 came from vCPU 1",
    "changed_after_done": f"{IMPOSSIBLE}",
    "triple_fault": "vCPU 0 triple-faulted",
    "endless_loop": "The guest hung",
    "halted_for_good": "The guest hung",
    "port_unknown": "vCPU 0 wrote to the unknown port 0x80",
    "port_read": "vCPU 0 reported no byte",
    "port_wide": "vCPU 0 reported no byte",
    "port_string": "vCPU 0 reported",
    "state_unknown": "vCPU 0 reported the unknown state 0x77",
    "tsc_set_back": f"{IMPOSSIBLE}",
    "init_to_the_target": "The guest hung",
}


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ahead[str]]:
    image = payloads.build(tmp_path_factory.mktemp("payload"))

    def play(mode: str) -> Outcome:
        return payloads.run(payloads.in_mode(image, mode), RUN, LIMIT_S)

    played = Ahead(play, MODES)
    yield played
    played.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_payload_that_lies(ahead: Ahead[str], mode: str) -> None:
    outcome = ahead.outcome(mode)
    good = {ExitCode.OK} if mode in HARMLESS | EITHER else set()
    bad = set() if mode in HARMLESS else {ExitCode.UNTRUSTWORTHY}
    assert_harmless(outcome, frozenset(good | bad))
    if outcome.code != ExitCode.OK:
        assert SAID.get(mode, "The guest") in outcome.stderr
        return
    run = json.loads(outcome.stdout)
    (row,) = run["scenarios"]
    assert (row["sent"], row["delivered"], row["incomplete"]) == (COUNT, COUNT, 0)
    for name in ("send_cycles", "deliver_cycles", "round_trip_cycles"):
        assert 0 < row[name]["min"] <= row[name]["max"] < 10**10


def test_every_reason_is_of_a_mode() -> None:
    assert set(MODES) > set(SAID) | HARMLESS | EITHER
    assert len(MODES) >= 40
