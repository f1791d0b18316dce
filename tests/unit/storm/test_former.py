# SPDX-License-Identifier: Apache-2.0
"""What an older ipitrace left in a guest under the name ipistorm goes; another's ipistorm stays.

The guest is a folder: its commands run here, with the paths in them moved below it.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_guest_words import STATUS, assert_told

from ipitrace.base.errors import HostError
from ipitrace.storm.linux import install
from ipitrace.storm.linux.former import remove_former
from ipitrace.storm.linux.helper import INSTALLED
from ipitrace.storm.transport.local import LocalShell
from ipitrace.storm.transport.shell import Finished, nothing

LEFT = (
    "/var/lib/dkms/ipistorm/1.0",
    "/usr/src/ipistorm-1.0",
    "/lib/modules/6.1.0/extra/ipistorm.ko.xz",
    "/lib/modules/6.12.0/updates/dkms/ipistorm.ko",
    "/usr/local/bin/ipistorm",
)
PROGRAMS = {
    "modinfo": """sed -n 's/^author=//p' "$3" """,
    "insmod": """mkdir -p "$ROOT/sys/module/$(basename "$1" .ko)" """,
    "rmmod": """[ ! -e "$ROOT/busy" ] || { echo "ERROR: $1 is in use" >&2; exit 1; }
rm -r "$ROOT/sys/module/$1" """,
    "dkms": """rm -r "$ROOT/var/lib/dkms/$3/$5" """,
    "depmod": "",
}


class GuestFolder:
    """A guest with these programs in it; they log how they are called."""

    via = "local"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.told: list[str] = []
        self.steps: list[str] = []
        for name, text in PROGRAMS.items():
            script = f'#!/bin/sh\necho "{name} $*" >>"$ROOT/log"\n{text}\n'
            self.write(f"/bin/{name}", script).chmod(0o755)
        self.write("/log", "")

    def write(self, path: str, text: str) -> Path:
        place = Path(f"{self.root}{path}")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        return place

    def run(self, command: Sequence[str], *, stdin: bytes = b"", **_how: object) -> Finished:
        inside = re.compile(r"(?<![\w/])/(?=(?:sys|proc|var|usr|lib)/)")
        moved = [inside.sub(f"{self.root}/", word) for word in command]
        environment = [f"ROOT={self.root}", f"PATH={self.root}/bin:{os.environ['PATH']}"]
        done = LocalShell().run(["env", *environment, *moved], stdin=stdin)
        said = done.stdout.replace(str(self.root).encode(), b"")
        return Finished(done.status, said, done.stderr)

    def step(self, what: str) -> mock.MagicMock:
        self.steps.append(what)
        return mock.MagicMock()

    def log(self) -> str:
        return re.sub(rf"{self.root}|modinfo .*\n", "", (self.root / "log").read_text())

    def named(self) -> set[str]:
        """Whatever has the former name."""
        return {str(path)[len(str(self.root)) :] for path in self.root.rglob("ipistorm*")}

    def install(self) -> None:
        helper = self.write("/../helper", f"#!/bin/sh\necho '{json.dumps(STATUS)}'\n")
        module = self.write("/../built.ko", "")
        with mock.patch.object(install, "_helper", return_value=helper):
            install.install(self, self.told.append, self.step, module)

    def remove(self) -> None:
        install.remove(self, self.told.append)


def with_ipistorm(root: Path, *, ours: bool) -> GuestFolder:
    """A guest with a module of that name in every place there is, and loaded."""
    guest = GuestFolder(root)
    author = "The ipitrace developers" if ours else "Somebody else"
    guest.write("/sys/module/ipistorm/refcnt", "0\n")
    guest.write("/proc/misc", f" 58 {'ipistorm' if ours else 'kvm'}\n")
    states = "  0: offline\n" + ("153: ipistorm:online\n" if ours else "")
    guest.write("/sys/devices/system/cpu/hotplug/states", states)
    guest.write("/usr/src/ipistorm-1.0/device.c", f'MODULE_AUTHOR("{author}");\n')
    dkms = root / "var/lib/dkms/ipistorm"
    (dkms / "1.0").mkdir(parents=True)
    (dkms / "1.0/source").symlink_to(root / "usr/src/ipistorm-1.0")
    (dkms / "kernel-6.12.0").symlink_to("1.0")
    guest.write("/lib/modules/6.12.0/updates/dkms/ipistorm.ko", f"author={author}\n")
    guest.write("/lib/modules/6.1.0/extra/ipistorm.ko.xz", f"author={author}\n")
    words = "runs a storm and writes its storm file to stdout" if ours else "something else"
    guest.write("/usr/local/bin/ipistorm", f"\0{words}\0")
    if ours:
        guest.write(f"{INSTALLED}/ipistorm", "the helper")
        guest.write(f"{INSTALLED}/src/ipistorm.ko", "")
        guest.write(f"{INSTALLED}/installed", "of an older ipitrace\n")
    return guest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "guest"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("act", [GuestFolder.install, GuestFolder.remove])
def test_ours_is_removed(root: Path, act: Callable[[GuestFolder], None]) -> None:
    guest = with_ipistorm(root, ours=True)
    act(guest)
    assert guest.told[: 1 + len(LEFT)] == ["unloaded ipistorm", *(f"removed {x}" for x in LEFT)]
    assert guest.named() <= {"/var/lib/dkms/ipistorm"}  # which DKMS itself removes
    assert guest.log().startswith(
        "rmmod ipistorm\ndkms remove -m ipistorm -v 1.0 --all\ndepmod 6.1.0\ndepmod 6.12.0\n"
    )
    if act is GuestFolder.install:
        assert set(guest.steps) >= {f"removing {x}" for x in LEFT}
        assert guest.told[-1] == "loaded ipitrace_storm"
        assert (root / f"sys/module/{install.MODULE}").is_dir()
    else:
        assert guest.told[-1].startswith(f"removed {INSTALLED} and the ")


def test_once_it_is_gone_nothing_is_told_of_it(root: Path) -> None:
    guest = with_ipistorm(root, ours=True)
    guest.install()
    guest.told.clear()
    guest.install()
    assert guest.told == [f"{INSTALLED} is up to date", "ipitrace_storm is loaded"]
    guest.told.clear()
    guest.remove()
    guest.remove()
    assert [line.split()[0] for line in guest.told] == ["unloaded", "removed", "there"]


def test_another_ipistorm_is_left_alone_and_told_of(root: Path) -> None:
    guest = with_ipistorm(root, ours=False)
    before = guest.named()
    guest.install()
    left = ["left ipistorm loaded: it is not ipitrace's"]
    left += [f"left {path} alone: it is not ipitrace's" for path in LEFT]
    assert guest.told[: len(left)] == left
    assert guest.told[-1] == "loaded ipitrace_storm"
    assert guest.named() == before
    assert guest.log() == f"insmod {INSTALLED}/src/ipitrace_storm.ko\n"
    guest.told.clear()
    guest.remove()
    assert guest.named() == before
    assert guest.told[1 : 1 + len(left)] == left
    assert guest.told[-1].startswith(f"removed {INSTALLED}")
    assert guest.log().endswith("\nrmmod ipitrace_storm\n")
    guest.told.clear()
    guest.remove()
    assert guest.told == [*left, "there was nothing to remove"]


@pytest.mark.parametrize("lost", ["/proc/misc", "/sys/devices/system/cpu/hotplug/states"])
def test_a_loaded_module_without_one_of_its_marks_is_not_ours(root: Path, lost: str) -> None:
    guest = with_ipistorm(root, ours=True)
    Path(f"{root}{lost}").unlink()
    guest.install()
    assert guest.told[0] == "left ipistorm loaded: it is not ipitrace's"
    assert (root / "sys/module/ipistorm").is_dir()


@pytest.mark.parametrize("act", [GuestFolder.install, GuestFolder.remove])
def test_while_its_storm_runs_nothing_is_removed(
    root: Path, act: Callable[[GuestFolder], None]
) -> None:
    guest = with_ipistorm(root, ours=True)
    guest.write("/busy", "")
    before = guest.named()
    with pytest.raises(HostError, match="The module ipistorm cannot be unloaded: ERROR"):
        act(guest)
    assert guest.named() == before


def test_a_guest_that_cannot_build_keeps_the_former_one(root: Path) -> None:
    guest = with_ipistorm(root, ours=True)
    before = guest.named()
    helper = guest.write("/../helper", "")
    with (
        mock.patch.object(install, "_helper", return_value=helper),
        pytest.raises(HostError, match="lacks the headers of its kernel"),
    ):
        install.install(guest, guest.told.append, guest.step)
    assert guest.named() == before


class SaysFirst:
    """A guest that answers the look so, and does what it is told to."""

    via = "none"

    def __init__(self, said: bytes) -> None:
        self._said = said
        self.commands: list[list[str]] = []

    def run(self, command: Sequence[str], **_more: object) -> Finished:
        if command[0] == "sh":
            return Finished(0, self._said, "")
        self.commands.append(list(command))
        return Finished(0, b"", "")


KINDS = st.sampled_from(["loaded", "dkms", "source", "built", "helper", "none"])
PATHS = st.sampled_from(["/sys/module/ipistorm", *LEFT]) | st.text(max_size=20)
LINES = st.lists(st.tuples(st.sampled_from(["ours", "other", ""]), KINDS, PATHS), max_size=4)


@given(LINES.map(lambda lines: "\n".join(" ".join(line) for line in lines)))
@example("ours source /usr/src/ipistorm-/../../etc")
@example("ours source /usr/src/ipistorm-1.0 /etc")
@example("ours dkms /var/lib/dkms/ipistorm/--all")
@example("ours built /lib/modules/../extra/ipistorm.ko")
@example("other source /usr/src/ipistorm-\x1b[2J")
@example("other loaded\n" * 65)
def test_whatever_a_guest_says_is_there(said: str) -> None:
    guest = SaysFirst(said.encode(errors="surrogatepass"))
    told: list[str] = []
    try:
        remove_former(guest, told.append, lambda _what: mock.MagicMock())
    except HostError as error:
        assert_told(error)
    assert all(line.isprintable() for line in told)
    for command in guest.commands:
        last = command[command.index("-v") + 1] if command[0] == "dkms" else command[-1]
        assert re.fullmatch(r"ipistorm|1\.0|6\.\d+\.0|/usr/[\w/.-]+|/lib/[\w/.-]+", last, re.ASCII)
        assert ".." not in last


def test_a_guest_that_does_not_remove_is_told_of(root: Path) -> None:
    guest = with_ipistorm(root, ours=True)
    guest.write("/bin/dkms", "#!/bin/sh\necho 'Error! no' >&2\nexit 3\n")
    with pytest.raises(HostError, match=r"dkms/ipistorm/1\.0 failed: Error! no"):
        remove_former(guest, guest.told.append, lambda _what: mock.MagicMock(return_value=nothing))
    assert guest.told == ["unloaded ipistorm"]
