# SPDX-License-Identifier: Apache-2.0
"""kill -9 at random moments of run, watch and ab: nothing is left but what is whole.

`make faults` kills each a hundred times, the normal suite three times. The moments are seeded.
"""

import os
import random
import re
import shutil
import time
from collections.abc import Iterator

import pytest
from guests import micro_guest
from place import Place, whole

from ipitrace.base.errors import ExitCode

pytestmark = pytest.mark.live

TIMES = int(os.environ.get("IPITRACE_KILLS", "3"))
SEED = int(os.environ.get("IPITRACE_SEED", "20201"))
A_RUN = ("--scenario", "unicast-running", "--scenario", "self", "--count", 400, "--repeat", 2)
LONG = ("--scenario", "unicast-running", "--count", 1_000_000)
ENDS_WITHIN_S = 10.0  # where it would go on for minutes by itself
PARTIAL = re.compile(r"\.(rec|\d{3})\.partial-\d+(-\d+)?")


def moments(place: Place, *arguments: object) -> Iterator[float]:
    """Seconds after the start, from the first import to the end of one that nobody kills."""
    began_s = time.monotonic()
    with place.starts(*arguments) as program:
        # What others do on this machine may make its numbers worthless, but not its moments.
        ended = program.finish()
        assert ended in {ExitCode.OK, ExitCode.UNTRUSTWORTHY}, program.complained
    took_s = time.monotonic() - began_s
    chance = random.Random(SEED)  # noqa: S311 - moments, no secrets
    return (chance.uniform(0.0, took_s) for _ in range(TIMES))


def kill_at(place: Place, at_s: float, *arguments: object) -> None:
    """Kill its first process then, and see that all others end by themselves."""
    with place.starts(*arguments) as program:
        time.sleep(at_s)
        program.kill()
        try:
            program.assert_gone()
        except AssertionError as error:
            raise AssertionError(f"killed after {at_s:.3f} s: {error}") from error


@pytest.mark.slow
def test_run(place: Place) -> None:
    partial = 0
    for at_s in moments(place, "run", *A_RUN, "-o", "rec"):
        shutil.rmtree(place.cwd / "rec", ignore_errors=True)
        kill_at(place, at_s, "run", *A_RUN, "-q", "-o", "rec")
        for name in place.names():
            if PARTIAL.fullmatch(name):
                partial += 1
                shutil.rmtree(place.cwd / name)
            else:
                assert name == "rec", f"killed after {at_s:.3f} s"
                assert whole(place.cwd / name).complete
    print(f"{TIMES} killed, {partial} left their unfinished recording")


def test_the_next_run_cleans_or_explains_what_a_killed_one_left(place: Place) -> None:
    with place.starts("run", *LONG, "-o", "rec") as program:
        while not any(map(PARTIAL.fullmatch, place.names())):
            assert program.process.poll() is None
            time.sleep(0.01)
        program.kill()
        program.assert_gone()
    (left,) = place.names()
    with place.starts("run", *A_RUN, "-o", "rec") as program:
        assert program.finish() == 0, program.complained
    assert whole(place.cwd / "rec").complete
    assert left not in place.names() or left in program.complained


@pytest.mark.slow
def test_watch(place: Place) -> None:
    words = ("watch", "--interval", 0.1, "--json", "--openmetrics", "totals")
    with micro_guest("unicast-blocked"):
        for at_s in moments(place, *words, "--duration", 0.5):
            kill_at(place, at_s + 0.1, *words)
            # What it would have put in place of the file may be left, as of run.
            odd = [name for name in place.names() - {"totals"} if not name.startswith(".totals")]
            assert odd == [], f"killed after {at_s:.3f} s"
            text = (place.cwd / "totals").read_text()
            assert text.endswith("# EOF\n"), "readers never see half of it"


@pytest.mark.slow
def test_ab(place: Place) -> None:
    words = ("ab", "--a", "true", "--b", "true", "--rounds", 1, "-o", "both")
    words += ("--allow", "other_vms")  # which come and go
    for at_s in moments(place, *words, "--", *A_RUN):
        shutil.rmtree(place.cwd / "both", ignore_errors=True)
        kill_at(place, at_s, *words, "--", *A_RUN)
        assert place.names() <= {"both"}
        for recording in (place.cwd / "both").glob("[ab]/*"):
            if not PARTIAL.fullmatch(recording.name):
                assert whole(recording).complete, f"killed after {at_s:.3f} s"


def test_the_run_of_a_killed_ab_ends_with_it(place: Place) -> None:
    with place.starts("ab", "--a", "true", "--b", "true", "-o", "both", "--", *LONG) as program:
        while not list((place.cwd / "both").glob("a/.*partial*")):
            assert program.process.poll() is None
            time.sleep(0.01)
        program.kill()
        program.assert_gone(ENDS_WITHIN_S)


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_set_up_command_of_a_killed_ab_runs_to_its_end(place: Place, side: str) -> None:
    """It is the person's own: a host set up by half is worse (docs/decisions/0010-children.md).

    All else ends at once, and the command needs nobody to end.
    """
    until_told = "echo >begun; until [ -e go ]; do sleep 0.05; done; echo >ended"
    commands = {"a": "true", "b": "true"} | {side: until_told}
    words = ("ab", "--a", commands["a"], "--b", commands["b"], "-o", "both", "--rounds", 1)
    with place.starts(*words, "--", *A_RUN) as program:
        while "begun" not in place.names():
            assert program.process.poll() is None
            time.sleep(0.01)
        program.kill()
        deadline_s = time.monotonic() + ENDS_WITHIN_S
        while ours := [c for c in program.still_there().values() if "ipitrace" in c]:
            assert time.monotonic() < deadline_s, ours
            time.sleep(0.02)
        assert any(until_told in command for command in program.still_there().values())
        (place.cwd / "go").touch()
        program.assert_gone(ENDS_WITHIN_S)
    assert "ended" in place.names()
