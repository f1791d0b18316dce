# SPDX-License-Identifier: Apache-2.0
"""Every table at several widths: no wider than the terminal, no word broken, no room lost."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from commands import ENVIRONMENT, IPITRACE, ipi
from comparisons import held_against, steady
from runs import made_run
from test_hostile_text import EXAMINATION, STATUS, VM
from test_watch_text import interval, vm

from ipitrace.base.console import PIPE_WIDTH
from ipitrace.commands.guest import status_text
from ipitrace.commands.report import _timeline
from ipitrace.compare import Settings, compare
from ipitrace.compare.anchors import read_anchors
from ipitrace.compare.gates import parse_gate
from ipitrace.compare.versus import parse_pair
from ipitrace.doctor import Examination
from ipitrace.doctor.model import Check
from ipitrace.measure.preview import Attaching, Preview, PreviewedGuest, PreviewedStorms, Sending
from ipitrace.recording.guest import GuestResult, VmResult
from ipitrace.recording.reader import read_run
from ipitrace.recording.row import ExitsPerIpi
from ipitrace.render.compare.tables import render_anchors, render_comparison
from ipitrace.render.doctor import render_examination
from ipitrace.render.list import render_list
from ipitrace.render.preview import render_preview
from ipitrace.render.run.tables import render_run
from ipitrace.render.run.timeline import render_timeline
from ipitrace.render.scenarios import Offer, render_scenarios
from ipitrace.render.watch.text import render_interval
from ipitrace.storm.micro.driver import unsupported
from ipitrace.vm import Discovery
from ipitrace.watch.model import ExitsOfReason, VmExits
from ipitrace.words.scenarios import SCENARIOS

RECORDINGS = Path(__file__).parents[2] / "data/recordings"
WIDTHS = (80, 100, 132)
WITHOUT_END = 100_000
LONG_WORD = 24  # longer ones may be broken where columns are many
NAME = "instance-0000a3f2-of-a-customer.example.org"
Render = Callable[[int], str]


def timeline_of(name: str, ipi: int) -> Render:
    run = read_run(RECORDINGS / name)
    story = _timeline(RECORDINGS / name, run, ipi)
    return lambda width: render_timeline(story, run.clock.tsc_hz, run.emulator, width)


def run_of(name: str) -> Render:
    run = read_run(RECORDINGS / name)
    return lambda width: render_run(run, verbose=True, width=width)


def a_linux_run(width: int) -> str:
    guest = GuestResult(
        kind="linux",
        n_vcpus=128,
        pinned_cpus=tuple(range(128)),
        kernel="6.12.9",
        via="qga+libvirt:///system",
        vm=VmResult(NAME, "QEMU", 4194303),
        module_version="0.1.0",
        module_srcversion="0" * 24,
    )
    return render_run(made_run(guest=guest, failure="Interrupted.", complete=False), width=width)


def passthrough(width: int) -> str:
    sides = [[(n, read_run(RECORDINGS / n))] for n in ("passthrough-off", "passthrough-on")]
    names = ("unicast-running", "unicast-preempted", "self", "broadcast")
    gates = ("deliver:+5%", "send.p99:+10%")
    settings = Settings(
        pairs=tuple(parse_pair(f"{name}={name}-passthrough") for name in names),
        gates=tuple(map(parse_gate, gates)),
    )
    found = compare(sides[0], sides[1], ("passthrough-off", "passthrough-on"), settings)
    return render_comparison(found, every=True, width=width, whole_verdict=False)


def large_comparison(width: int) -> str:
    counted = ExitsPerIpi(
        "kvm_exit", {"exits": 1.0, "avic_unaccelerated_access": 1.0}, {"exits": 0.0}
    )
    found = held_against(steady(exits=[counted] * 8), steady(factor=900.0, exits=[counted] * 8))
    return render_comparison(found, every=True, width=width, whole_verdict=False)


def a_list(width: int) -> str:
    other = replace(VM, name=NAME, aliases=(NAME, "pid:4194303"), pid=4194303, vcpus=VM.vcpus * 20)
    return render_list(
        Discovery((VM, other, replace(other, pid=9, aliases=(NAME, "pid:9"))), 3, None), width
    )


def an_examination(width: int) -> str:
    says = "tracepoints missing: " + ", ".join(["kvm_apicv_accept_irq"] * 9)
    more = Check("frequency", "warn", says, "set the governor to performance, or say so " * 4)
    return render_examination(Examination((*EXAMINATION.checks, more), VM), width)


def an_interval(width: int, height: int | None = None) -> str:
    reasons = tuple(ExitsOfReason(r, vm().ipis) for r in ("EXTERNAL_INTERRUPT", "MSR_WRITE", "HLT"))
    exits = VmExits("KVM_GET_STATS_FD", reasons * 3, None)
    several = [replace(vm(f"guest{i}"), exits=exits) for i in range(3)]
    return render_interval(interval(*several, vm(NAME)), width=width, height=height)


def a_preview(width: int) -> str:
    storms = PreviewedStorms("unicast-preempted-passthrough", 1, 6, 1_000_000, 60_000, 43_333.0)
    programs = {f"kvm_event_{i}": "raw" for i in range(4)}
    why = "the kernel was built without kprobes, and its functions cannot be hooked otherwise"
    return render_preview(
        Preview(
            guest=PreviewedGuest("linux", f"{NAME} by its guest agent", 7, 64, tuple(range(64))),
            attaching=Attaching(None, programs, {"vmx_deliver_interrupt": why}, f"note: {why}"),
            sending=Sending(18, 3_000_000, 70.0, ("off", "full"), (storms,), {"x": why}, why),
            inside=(f"look into it: {why}",),
            writing="/var/lib/ipitrace/recordings/of-today",
            rights=(),
        ),
        width,
    )


RENDERED: Mapping[str, Render] = {
    **{path.name: run_of(path.name) for path in RECORDINGS.iterdir() if path.is_dir()},
    "linux": a_linux_run,
    "timeline": timeline_of("passthrough-off", 1),
    "timeline of AMD": timeline_of("amd-tcg", 10),
    "compare": passthrough,
    "compare large": large_comparison,
    "anchors": lambda width: render_anchors(read_anchors(), width=width),
    "scenarios": lambda width: render_scenarios(
        [Offer(s, unsupported(s)) for s in SCENARIOS], width
    ),
    "list": a_list,
    "doctor": an_examination,
    "watch": an_interval,
    "preview": a_preview,
    "guest status": lambda width: status_text(
        replace(STATUS, unsupported={"passthrough": "the kernel lacks the descriptors " * 4}), width
    ),
}


def words_of(text: str) -> set[str]:
    """Words and numbers; commas come and go with the layout of `compare`."""
    return {word.strip(",") for word in text.split() if not re.fullmatch("-+", word)}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", RENDERED)
def test_it_fits_and_no_word_is_broken(name: str, width: int) -> None:
    shown, endless = RENDERED[name](width), RENDERED[name](WITHOUT_END)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= width
    assert not any(line != line.rstrip() for line in lines)
    before, after = words_of(endless), words_of(shown)
    assert {word for word in before - after if len(word) <= LONG_WORD} == set()
    long = "".join(word for word in before if len(word) > LONG_WORD)
    assert {word for word in after - before if word not in long} == set()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", RENDERED)
def test_the_room_is_used(name: str, width: int) -> None:
    """What was wrapped was wrapped because the next word did not fit."""
    shown, endless = RENDERED[name](width), RENDERED[name](WITHOUT_END)
    if max(map(len, endless.splitlines())) > width:
        assert max(map(len, shown.splitlines())) > width - LONG_WORD


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (132, 40)])
def test_a_screen_has_as_many_lines_whatever_the_names(width: int, height: int) -> None:
    lines = an_interval(width, height).splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    head = lines.index("") + 1
    assert len(lines[head:][: 1 + 4]) == 5
    assert any(line.startswith("instance-") and line.endswith("125") for line in lines)


def shown_in_a_terminal(width: int, *words: object) -> list[str]:
    """The real command line's output to a terminal of this width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    command = [*IPITRACE, *map(str, words)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.PIPE, env=ENVIRONMENT
    ):
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            shown += piece
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()


PAIRED = ("--pair", "broadcast=broadcast-passthrough", "--all")
COMMANDS = (
    ("report", "--example"),
    ("report", "--example", "-v"),
    ("report", RECORDINGS / "passthrough-off", "--ipi", 1),
    ("scenarios",),
    ("doctor",),
    ("compare", *PAIRED, RECORDINGS / "passthrough-off", RECORDINGS / "passthrough-on"),
)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_the_real_terminal_is_filled_and_not_exceeded(words: tuple[object, ...]) -> None:
    narrow, wide = (shown_in_a_terminal(width, *words) for width in (80, 132))
    assert 80 - LONG_WORD < max(map(len, narrow)) <= 80
    assert max(map(len, wide)) <= 132
    if words[0] != "doctor":  # which may have no more to say of this host
        assert max(map(len, wide)) > 80
    assert len(wide) <= len(narrow)


def test_in_a_pipe_there_are_always_as_many_columns() -> None:
    for words in COMMANDS[:3]:
        env = ENVIRONMENT | {"COLUMNS": "60"}
        lines = ipi(*words, env=env).stdout.splitlines()
        assert PIPE_WIDTH - LONG_WORD < max(map(len, lines)) <= PIPE_WIDTH


def test_a_terminal_that_does_not_say_its_width_has_80_columns() -> None:
    assert max(map(len, shown_in_a_terminal(0, "scenarios"))) <= 80
