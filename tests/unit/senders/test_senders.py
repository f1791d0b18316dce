# SPDX-License-Identifier: Apache-2.0
"""What a guest says of its senders: taken, or refused in one sentence; and how it is shown."""

import csv
import io
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipitrace.base.errors import ExitCode, HostError
from ipitrace.render.formats import SENDERS
from ipitrace.senders.counting import count_senders
from ipitrace.senders.inside import COUNT, LAUNCH
from ipitrace.senders.model import QUEUED, TRACEPOINTS, Method
from ipitrace.senders.reading import read_senders
from ipitrace.storm.transport.shell import Finished

CORPUS = Path(__file__).parents[2] / "data" / "fuzz" / "senders"
HISTOGRAMS = (CORPUS / "usual").read_bytes()
RECORDS = (CORPUS / "records").read_bytes()
MASKS = (CORPUS / "masks").read_bytes()
MISSING = (CORPUS / "missing").read_bytes()


class Says:
    """A guest that prints this, whatever it is asked."""

    via = "none"

    def __init__(self, stdout: bytes, status: int = 0, stderr: str = "") -> None:
        self._done = Finished(status, stdout, stderr)

    def run(self, _command: Sequence[str], **_more: object) -> Finished:
        return self._done


def test_histograms_of_a_debian_guest_are_read_as_its_kernel_added_them_up() -> None:
    senders = read_senders(HISTOGRAMS)
    hits = [int(line.split()[-1]) for line in HISTOGRAMS.decode().splitlines() if " Hits: " in line]
    assert [source.count for source in senders.sources] == hits
    assert {source.method for source in senders.sources} == {Method.HISTOGRAM}
    queued = senders.sources[2].senders
    assert queued[0].callsite == "ttwu_queue_wakelist"
    assert queued[0].callback == "sched_ttwu_pending"
    assert [sender.count for sender in queued] == sorted((s.count for s in queued), reverse=True)


def test_records_are_added_up_by_call_site_and_callback() -> None:
    senders = read_senders(RECORDS)
    assert {source.method for source in senders.sources} == {Method.RECORDS}
    to_one = senders.sources[0]
    lines = [line.split() for line in RECORDS.decode().splitlines() if " ipi_send_cpu:" in line]
    assert to_one.count == sum(int(words[1]) for words in lines)
    assert len(to_one.senders) == len(lines)
    reschedule = [sender for sender in to_one.senders if sender.callback is None]
    assert "wakeup_preempt" in {sender.callsite for sender in reschedule}
    assert senders.rate(to_one, to_one.count) == pytest.approx(to_one.count / senders.duration_s)


def test_targets_of_masks_and_what_found_no_room() -> None:
    senders = read_senders(MASKS)
    to_one, to_mask, queued = senders.sources
    assert to_one.senders[0].callsite == "kvm_make_all_cpus_request [kvm]"
    assert (to_one.count, to_one.uncounted, to_one.senders[0].targets) == (10, 3, 1.0)
    assert to_mask.count == 8
    assert to_mask.senders[0].targets == (3 * 4 + 1 * 2) / 4
    assert (queued.tracepoint, queued.method) == (QUEUED, None)
    assert senders.lost_records == 4
    shown = SENDERS.render("table", senders)
    assert "3 of call sites that the histogram had no room for" in shown
    assert "not in this kernel: csd:csd_queue_cpu exists since Linux 6.5" in shown
    assert "targets per send are those of the first sends" in shown
    assert "3.5" in shown


def test_rates_are_not_known_where_records_were_lost() -> None:
    senders = read_senders(RECORDS.replace(b"more 0", b"more 9"))
    assert all(senders.rate(source, 1) is None for source in senders.sources)
    document = json.loads(SENDERS.render("json", senders))
    assert document["lost_records"] == 9
    assert {source["per_s"] for source in document["sources"]} == {None}
    assert "no room for 9 events" in SENDERS.render("table", senders)


def test_every_format_has_every_sender() -> None:
    senders = read_senders(HISTOGRAMS)
    rows = list(csv.DictReader(io.StringIO(SENDERS.render("csv", senders))))
    named = {(row["tracepoint"], row["callsite"], row["callback"] or None) for row in rows}
    assert named == {
        (source.tracepoint.name, sender.callsite, sender.callback)
        for source in senders.sources
        for sender in source.senders
    }
    for name in ("table", "markdown", "json"):
        text = SENDERS.render(name, senders).replace("\\_", "_")
        assert all(row["callsite"] in text for row in rows)


def test_a_kernel_without_the_tracepoints_is_told_from_which_linux_they_exist() -> None:
    with pytest.raises(HostError) as caught:
        count_senders(Says(MISSING), 1.0)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    for one in TRACEPOINTS:
        assert f"{one.name} exists since Linux {one.since}" in caught.value.message
    assert "6.1.0" in caught.value.message


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"hello\n",
        HISTOGRAMS.removesuffix(b"end\n"),
        HISTOGRAMS.replace(b"kernel", b"k\x1bernel"),
        HISTOGRAMS.replace(b"ttwu_queue", b"ttwu\x1b[31m"),
        HISTOGRAMS.replace(b"hitcount:  ", b"hitcount: -"),
        b"\n".join(line for line in HISTOGRAMS.split(b"\n") if b"uptime" not in line),
        b"\n".join(line for line in HISTOGRAMS.split(b"\n") if b"kernel" not in line),
        RECORDS.replace(b"record 1", b"record " + b"9" * 40, 1),
        RECORDS.replace(b"ipi_send_cpu: ", b"ipi_send_cpu: cpumask=f ", 1),
        MASKS.replace(b"cpumask=00000000,0000000f ", b""),
        MASKS.replace(b"uptime 1.00 2.00", b"uptime 2.00 1.00"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(said: bytes) -> None:
    with pytest.raises(HostError) as caught:
        count_senders(Says(said), 1.0)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200
    assert "is not valid" in caught.value.message


def test_what_the_guest_complains_about_is_told() -> None:
    with pytest.raises(HostError, match=r"mkdir: no\\x1b permission"):
        count_senders(Says(b"", 1, "mkdir: no\x1b permission"), 1.0)


@given(st.lists(st.sampled_from(b"".join((HISTOGRAMS, RECORDS, MASKS)).splitlines(keepends=True))))
def test_any_lines_are_read_or_refused(lines: list[bytes]) -> None:
    said = b"ipitrace-senders 1\n" + b"".join(lines)
    try:
        senders = read_senders(said)
    except ValueError:
        return
    for name in SENDERS.formats:
        SENDERS.render(name, senders)


@pytest.mark.parametrize("script", [LAUNCH, COUNT])
def test_the_scripts_are_those_of_a_plain_shell(script: str) -> None:
    done = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
