# SPDX-License-Identifier: Apache-2.0
"""A Debian guest driven over ssh and over its guest agent, from install to remove.

One boot for all, under emulation: KVM has no part in it, so there is no host's side.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from checks import assert_sound

from ipitrace.base.errors import ExitCode
from ipitrace.senders.inside import INSTANCE
from ipitrace.storm.linux.helper import INSTALLED
from lab.guest.machine import NAME, Running, running_guest, ssh_folder
from lab.guest.module import build_module

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(
        "trixie" not in os.environ.get("IPITRACE_GUEST", "").split(","),
        reason="IPITRACE_GUEST does not name trixie: make test-guest",
    ),
]

N_CPUS = 3
COUNT = 240
RING = "ring-xapic"
SCENARIOS = (
    *("unicast-running-xapic", "unicast-halted-xapic", "self-xapic", "broadcast-xapic"),
    RING,
)
WAYS = ("ssh", "qga")


@dataclass(frozen=True)
class Debian:
    """The guest, and how to reach it."""

    running: Running
    environment: dict[str, str]

    def via(self, way: str) -> str:
        return f"ssh://{NAME}" if way == "ssh" else f"qga://{self.running.agent}"

    def ipitrace(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "ipitrace", *words]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )

    def inside(self, script: str) -> str:
        """What a shell in the guest prints; by plain ssh, not by what is tested."""
        command = ["ssh", NAME, script]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Debian]:
    with running_guest(N_CPUS) as running:
        ssh = ssh_folder(running, tmp_path_factory.mktemp("ssh"))
        path = f"{ssh}:{os.environ['PATH']}"
        yield Debian(running, {**os.environ, "PATH": path})


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def installed(debian: Debian, way: str) -> Iterator[str]:
    """Installed that way, and removed again; what the install printed."""
    before = state_of(debian)
    done = debian.ipitrace(*install_words(debian, way))
    assert done.returncode == 0, done.stderr
    yield done.stdout
    done = debian.ipitrace("guest", "remove", "--vm", NAME, "--via", debian.via(way))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"unloaded ipitrace_storm\nremoved {INSTALLED} and the ")
    assert state_of(debian) == before


@pytest.fixture(scope="module")
def recording(
    debian: Debian, way: str, installed: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    assert installed
    directory = tmp_path_factory.mktemp("recordings") / way
    asked = [word for name in SCENARIOS for word in ("--scenario", name)]
    done = debian.ipitrace(
        *("run", "--vm", NAME, "--via", debian.via(way), "--no-trace", "--count", str(COUNT)),
        *("--repeat", "3", "--seed", "1", "-o", str(directory), *asked),
        *("--max-time", "unlimited"),  # the emulated CPUs share two real ones with all else
    )
    assert done.returncode == 0, done.stderr
    assert f"a Linux guest, Linux {debian.inside('uname -r')} via {way}" in done.stdout
    assert "this host's KVM has no VM 'guest1'" in done.stdout
    return directory


def install_words(debian: Debian, way: str) -> list[str]:
    """Built in the guest, which takes minutes under emulation, or elsewhere."""
    words = ["guest", "install", "--vm", NAME, "--via", debian.via(way)]
    if way == "ssh":
        return words
    return [*words, "--module", built_module()]


def built_module() -> str:
    return str(build_module("trixie").directory / "ipitrace_storm.ko")


def state_of(debian: Debian) -> tuple[str, ...]:
    """What must be in a guest as before once everything is removed."""
    folders = "/var/lib /tmp /run /lib/modules /usr/src /root"
    return (
        debian.inside("lsmod | awk '{ print $1 }' | sort"),
        debian.inside(f"find {folders} -xdev -not -path '*/.ssh*' | sort"),
        debian.inside("ls /dev"),
    )


def names_of(debian: Debian) -> list[str]:
    """Its modules, files and devices, but what a test keeps for itself in /root."""
    names = "\n".join(state_of(debian)).splitlines()
    return [name for name in names if not name.startswith("/root/")]


def storms_in(debian: Debian) -> int:
    return int(debian.inside("cat /proc/[0-9]*/comm 2>/dev/null | grep -xc ipitrace-storm || true"))


AUTHOR = "The ipitrace developers"
ANOTHER = "The unrelated developer"
FORMER = f"""
set -e
mkdir /root/former
cd /root/former
cat >ipistorm.c <<'END'
#include <linux/cpuhotplug.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
static bool marks;
module_param(marks, bool, 0);
static const struct file_operations operations = {{.owner = THIS_MODULE}};
static struct miscdevice device = {{
	.minor = MISC_DYNAMIC_MINOR, .name = "ipistorm", .fops = &operations}};
static int state;
static int leaves(unsigned int cpu)
{{
	return 0;
}}
static int __init begin(void)
{{
	if (!marks)
		return 0;
	state = cpuhp_setup_state_nocalls(CPUHP_AP_ONLINE_DYN, "ipistorm:online", NULL, leaves);
	return state < 0 ? state : misc_register(&device);
}}
static void __exit end(void)
{{
	if (!marks)
		return;
	misc_deregister(&device);
	cpuhp_remove_state_nocalls(state);
}}
module_init(begin);
module_exit(end);
MODULE_AUTHOR("{AUTHOR}");
MODULE_LICENSE("GPL");
END
echo 'obj-m := ipistorm.o' >Kbuild
make -s -C "/lib/modules/$(uname -r)/build" M="$PWD" modules 2>&1
"""
"""A module of the former name: as ours was marked, and with other words in it as another's."""


def test_what_an_older_ipitrace_left_goes_and_anothers_stays(debian: Debian) -> None:
    """First of all tests, as nothing is installed yet."""
    before = state_of(debian)
    debian.inside(FORMER)
    source = "/usr/src/ipistorm-1.0"
    built = f"/lib/modules/{debian.inside('uname -r')}/updates/ipistorm.ko"
    named = [source, built]
    for ours in (True, False):
        author = f"LC_ALL=C sed 's/{AUTHOR}/{AUTHOR if ours else ANOTHER}/' /root/former"
        debian.inside(f"mkdir -p {source} {Path(built).parent}")
        debian.inside(f"{author}/ipistorm.c >{source}/device.c; {author}/ipistorm.ko >{built}")
        debian.inside(f"/usr/sbin/insmod {built} marks={int(ours)}")
        done = debian.ipitrace(*install_words(debian, "qga"))
        assert done.returncode == 0, done.stderr
        told = done.stdout.splitlines()[:3]
        if ours:
            assert told == ["unloaded ipistorm", *(f"removed {path}" for path in named)]
            assert not [name for name in names_of(debian) if "ipistorm" in name]
    left = ["left ipistorm loaded: it is not ipitrace's"]
    left += [f"left {path} alone: it is not ipitrace's" for path in named]
    assert told == left
    done = debian.ipitrace("guest", "remove", "--vm", NAME, "--via", debian.via("ssh"))
    assert done.stdout.splitlines()[1:4] == left, done.stderr
    debian.inside(f"/usr/sbin/rmmod ipistorm; rm -r {built} {source} /root/former")
    debian.inside(f"rmdir --ignore-fail-on-non-empty {Path(built).parent}")
    assert state_of(debian) == before


def test_an_install_says_what_it_did(debian: Debian, way: str, installed: str) -> None:
    kernel = debian.inside("uname -r")
    assert (f"built ipitrace_storm.ko for Linux {kernel}" in installed) == (way == "ssh")
    assert "\nloaded ipitrace_storm\n" in installed
    assert f"guest    Linux {kernel}, CPUs 0, 1, 2 online of {N_CPUS}" in installed
    assert debian.inside("cat /sys/module/ipitrace_storm/srcversion") in installed


def test_a_second_install_does_nothing(debian: Debian, way: str, installed: str) -> None:
    assert installed
    done = debian.ipitrace(*install_words(debian, way))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{INSTALLED} is up to date\nipitrace_storm is loaded\n")


def test_after_a_reboot_it_is_only_loaded(debian: Debian, way: str, installed: str) -> None:
    assert installed
    debian.inside("/usr/sbin/rmmod ipitrace_storm")  # as a reboot does
    run = debian.ipitrace("run", "--vm", NAME, "--via", debian.via(way), "--no-trace")
    assert run.returncode == ExitCode.ENVIRONMENT
    assert "not loaded" in run.stderr
    assert "ipitrace guest install" in run.stderr
    done = debian.ipitrace(*install_words(debian, way))
    told = f"{INSTALLED} is up to date\nloaded ipitrace_storm\n"
    assert done.stdout.startswith(told), done.stderr


def test_status_names_what_the_guest_cannot_do(debian: Debian, way: str, installed: str) -> None:
    assert installed
    done = debian.ipitrace("guest", "status", "--vm", NAME, "--via", debian.via(way))
    assert done.returncode == 0, done.stderr
    assert "cannot   x2apic: " in done.stdout
    assert "APICs in xapic mode" in done.stdout


def test_the_records_are_sound(recording: Path) -> None:
    run = json.loads((recording / "run.json").read_text())
    assert_sound(run)
    assert run["complete"]
    assert run["untrustworthy"] == []
    assert [row["name"] for row in run["scenarios"]] == list(SCENARIOS)
    for row in run["scenarios"]:
        assert row["status"] == "measured"
        assert row["sent"] == COUNT * (N_CPUS if row["name"] == RING else 1)
        assert row["delivered"] == row["sent"] * row["targets"]
        assert (row["coalesced"], row["incomplete"]) == (0, 0)
        assert 0 < row["send_cycles"]["p50"] < row["round_trip_cycles"]["p50"]
        assert 0 < row["deliver_cycles"]["p50"] < row["round_trip_cycles"]["p50"]
    assert [row["targets"] for row in run["scenarios"]] == [1, 1, 1, N_CPUS - 1, 1]
    assert run["losses"]["unpaired_receipts"] == 0
    assert run["guest"]["vm"] is None
    assert run["guest"]["apic_ids"] == [0, 1, 2]


def test_guest_only_numbers_say_so(recording: Path) -> None:
    run = json.loads((recording / "run.json").read_text())
    assert run["observer"] is None
    assert run["observer_absent"] == "nothing was traced: this host's KVM has no VM 'guest1'"
    assert run["clock"]["source"] == "the guest's kernel"
    assert run["clock"]["guest_tsc_offset"] is None
    for row in run["scenarios"]:
        assert row["exits"]["source"] is None
        assert row["paths"] is None
        assert row["absent"]["paths"] == "nothing was traced"
    assert not (recording / "host_events.parquet").exists()


LAYOUTS: dict[str, object] = {}


def test_both_ways_give_the_same_layout(recording: Path, way: str) -> None:
    table = pq.read_table(recording / "guest_ipis.parquet")
    run = json.loads((recording / "run.json").read_text())
    guest = {name: value for name, value in run["guest"].items() if name != "via"}
    seq = table.column("seq").to_pylist()
    layout = (table.schema.names, table.schema.types, table.num_rows, seq, guest)
    assert table.num_rows == COUNT * (3 + N_CPUS - 1 + N_CPUS)
    for column in ("send_tsc", "sent_tsc", "handler_tsc", "ack_tsc"):
        assert table.column(column).null_count == 0
    LAYOUTS[way] = layout
    if way != WAYS[0]:
        if WAYS[0] not in LAYOUTS:
            pytest.skip(f"the recording by {WAYS[0]} is not there: this test was picked alone")
        assert layout == LAYOUTS[WAYS[0]]


def test_what_a_repetition_logged_is_in_order(recording: Path) -> None:
    table = pq.read_table(recording / "guest_ipis.parquet").to_pydict()
    rows = zip(*(table[f"{c}_tsc"] for c in ("send", "sent", "handler", "ack")), strict=True)
    for send, sent, handler, ack in rows:
        assert send < sent <= ack
        assert send < handler <= ack


def test_a_large_storm_arrives_whole(
    debian: Debian, way: str, installed: str, tmp_path: Path
) -> None:
    """More than one piece of the agent's file reads: 56 bytes a send."""
    assert installed
    count = 30_000
    done = debian.ipitrace(
        *("run", "--vm", NAME, "--via", debian.via(way), "--no-trace", "--count", str(count)),
        *("--repeat", "1", "--pace", "0", "--scenario", "self-xapic", "-o", str(tmp_path / "r")),
        *("--max-rate", "unlimited", "--max-time", "unlimited"),
    )
    assert done.returncode == 0, done.stderr
    assert pq.read_metadata(tmp_path / "r" / "guest_ipis.parquet").num_rows == count


def test_a_lost_ipi_is_told(debian: Debian, way: str, installed: str, tmp_path: Path) -> None:
    assert installed
    done = debian.ipitrace(
        *("run", "--vm", NAME, "--via", debian.via(way), "--no-trace", "--count", "100"),
        *("--repeat", "1", "--scenario", "unicast-running-xapic", "-o", str(tmp_path / "r")),
        *("--inject", "lost-ipi"),
    )
    assert done.returncode == ExitCode.UNTRUSTWORTHY
    run = json.loads((tmp_path / "r" / "run.json").read_text())
    assert run["losses"]["incomplete_ipis"] == 1


def test_a_vm_that_is_not_here_is_not_traced_in_silence(debian: Debian, way: str) -> None:
    done = debian.ipitrace("run", "--vm", NAME, "--via", debian.via(way))
    assert done.returncode == ExitCode.USAGE
    assert "There is no VM 'guest1'" in done.stderr
    assert "--no-trace" in done.stderr


def test_an_unknown_host_key_is_never_accepted(debian: Debian) -> None:
    stranger = f"ssh://root@127.0.0.1:{debian.running.port}"
    environment = {**os.environ}  # without the settings that know the guest
    command = [sys.executable, "-m", "ipitrace", "guest", "status", "--vm", NAME, "--via", stranger]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.ENVIRONMENT
    assert "Host key verification failed" in done.stderr
    assert "check the host's key" in done.stderr


def test_an_interrupted_run_leaves_no_storm_behind(
    debian: Debian, way: str, installed: str, tmp_path: Path
) -> None:
    assert installed
    command = [
        *("env", "--default-signal=INT"),  # which a shell ignores for what runs beside it
        *(sys.executable, "-m", "ipitrace", "run", "--vm", NAME, "--via", debian.via(way)),
        *("--no-trace", "--scenario", "self-xapic", "--count", "2000", "--repeat", "1"),
        *("--pace", "500000000", "--max-time", "unlimited", "-o", str(tmp_path / "r"), "-q"),
    ]
    run = subprocess.Popen(command, env=debian.environment, stderr=subprocess.PIPE, text=True)
    while not storms_in(debian):
        assert run.poll() is None
    run.send_signal(2)
    _, said = run.communicate()
    assert run.returncode == ExitCode.INTERRUPTED, said
    assert storms_in(debian) == 0


def in_tracefs(debian: Debian, script: str) -> str:
    """What the script prints there; tracefs is mounted for it alone."""
    mount = "mount -n -t tracefs none /sys/kernel/tracing && cd /sys/kernel/tracing"
    return debian.inside(f"unshare -m sh -c '{mount} && {script}'")


def tracing_in(debian: Debian) -> str:
    """The instances, and what is on in the global one."""
    return in_tracefs(debian, "ls instances && cat set_event tracing_on buffer_size_kb trace")


def counts_in(debian: Debian) -> bool:
    """Whether `guest senders` counts at this moment: its last histogram is not paused."""
    histogram = f"instances/{INSTANCE}*/events/csd/csd_queue_cpu/hist"
    return in_tracefs(debian, f"cat {histogram} 2>/dev/null | grep -c active || true") != "0"


@contextlib.contextmanager
def counting_senders(
    debian: Debian, way: str, duration_s: int
) -> Iterator["subprocess.Popen[str]"]:
    """`guest senders`, which counts by now."""
    to = ("--vm", NAME, "--via", debian.via(way), "--duration", str(duration_s), "--json")
    command = ["env", "--default-signal=INT", sys.executable, "-m", "ipitrace", "guest", "senders"]
    with subprocess.Popen(
        [*command, *to],
        env=debian.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as counting:
        try:
            while not counts_in(debian):
                assert counting.poll() is None
            yield counting
        finally:
            counting.kill()


def test_the_senders_of_a_storm_are_counted(debian: Debian, way: str, installed: str) -> None:
    """The kernel's own calls: each is queued for two CPUs, and mostly sent to both at once."""
    assert installed
    before = tracing_in(debian)
    count = 100
    storm = f"{INSTALLED}/ipitrace-storm run --pattern broadcast --state running --warmup 0"
    storm += f" --method smp-call --count {count} --pace-cycles 0 --max-incomplete 0"
    with counting_senders(debian, way, 60) as counting:
        debian.inside(f"{storm} --timeout-cycles 20000000000 >/dev/null")
        assert counting.poll() is None
        said, complained = counting.communicate()
    assert counting.returncode == 0, complained
    document = json.loads(said)
    assert document["kernel"] == debian.inside("uname -r")
    assert {source["method"] for source in document["sources"]} == {"histogram"}
    assert {source["uncounted"] for source in document["sources"]} == {0}
    found = {source["tracepoint"]: source["senders"] for source in document["sources"]}
    handler = "receive_smp_call [ipitrace_storm]"
    ours = [row for row in found["csd:csd_queue_cpu"] if row["callback"] == handler]
    assert [row["count"] for row in ours] == [count * (N_CPUS - 1)]
    callsite = ours[0]["callsite"]
    masks = [row for row in found["ipi:ipi_send_cpumask"] if row["callsite"] == callsite]
    assert len(masks) == 1
    assert 0.5 * count <= masks[0]["count"] <= count
    assert masks[0]["targets_per_send"] == N_CPUS - 1
    assert tracing_in(debian) == before


def test_interrupted_senders_leave_no_instance(debian: Debian, way: str) -> None:
    before = tracing_in(debian)
    with counting_senders(debian, way, 300) as counting:
        counting.send_signal(2)
        _, said = counting.communicate()
    assert counting.returncode == ExitCode.INTERRUPTED, said
    deadline_s = time.monotonic() + 60
    while (after := tracing_in(debian)) != before and time.monotonic() < deadline_s:
        pass
    assert after == before
    assert "sleep 300" not in debian.inside("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert debian.inside("grep -c tracefs /proc/mounts || true") == "0"


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("ssh", f"The guest at {NAME} cannot be reached: "),
        ("qga", "The connection to the guest agent behind "),
    ],
)
def test_a_guest_that_dies_leaves_what_was_finished(way: str, told: str, tmp_path: Path) -> None:
    with running_guest(2) as running:
        path = f"{ssh_folder(running, tmp_path)}:{os.environ['PATH']}"
        guest = Debian(running, {**os.environ, "PATH": path})
        to = ("--vm", NAME, "--via", guest.via(way))
        done = guest.ipitrace("guest", "install", *to, "--module", built_module())
        assert done.returncode == 0, done.stderr
        run = subprocess.Popen(
            [
                *(sys.executable, "-m", "ipitrace", "run", *to, "--no-trace", "-q"),
                *("--scenario", "self-xapic", "--count", "500", "--pace", "5000000"),
                *("--repeat", "50", "-o", str(tmp_path / "r")),
            ],
            env=guest.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        seen: set[str] = set()
        while len(seen) < 3:
            assert run.poll() is None
            seen |= set(guest.inside("pidof -s ipitrace-storm || true").split())
        with contextlib.suppress(subprocess.CalledProcessError):
            guest.inside("echo o >/proc/sysrq-trigger")  # off at once
        _, said = run.communicate()
    assert run.returncode == ExitCode.UNTRUSTWORTHY, said
    assert said.startswith(f"ipitrace: {told}")
    recorded = json.loads((tmp_path / "r" / "run.json").read_text())
    assert not recorded["complete"]
    (row,) = recorded["scenarios"]
    assert row["repetitions"] >= 2
    assert pq.read_metadata(tmp_path / "r" / "guest_ipis.parquet").num_rows == row["sent"]
