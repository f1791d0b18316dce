# SPDX-License-Identifier: Apache-2.0
"""Removes from a guest what an older ipitrace left there: its module was called ipistorm.

An unrelated public module has the same name. A file or module is therefore removed only if its
content proves that it is ipitrace's; otherwise it stays and is reported. INSTALLED is not
searched: all of it is ipitrace's, and install() and remove() empty it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ipitrace.base.errors import HostError
from ipitrace.base.foreign import plain
from ipitrace.storm import limits
from ipitrace.storm.guest_json import shown
from ipitrace.storm.linux.guest_change import CHANGE_S, Step, Tell, checked, unload
from ipitrace.storm.transport.shell import Shell

_MODULE: Final = "ipistorm"
_MOST_FOUND: Final = 64
_AUTHOR: Final = "The ipitrace developers"

# The kinds of things that are searched for, in the order of removal, and their places.
_LOADED, _DKMS, _SOURCE, _BUILT, _HELPER = "loaded", "dkms", "source", "built", "helper"
_NAME: Final = r"\w[\w.+~-]*"
_PLACES: Final = {
    kind: re.compile(place, re.ASCII)
    for kind, place in {
        _LOADED: rf"/sys/module/{_MODULE}",
        _DKMS: rf"/var/lib/dkms/{_MODULE}/({_NAME})",
        _SOURCE: rf"/usr/src/{_MODULE}-{_NAME}",
        _BUILT: rf"/lib/modules/({_NAME})/(?:extra|updates|updates/dkms)/{_MODULE}\.ko[.\w]*",
        _HELPER: rf"/usr/local/s?bin/{_MODULE}",
    }.items()
}

# A loaded module shows no author. ipitrace's has a device and a hotplug state of its name; the
# public one has neither.
_LOOK: Final = f"""
found() {{
	kind=$1 path=$2
	shift 2
	if "$@" >/dev/null 2>&1; then whose=ours; else whose=other; fi
	printf '%s\\n' "$whose $kind $path"
}}
runs_ours() {{
	grep -q ' {_MODULE}$' /proc/misc &&
		grep -q ': {_MODULE}:online$' /sys/devices/system/cpu/hotplug/states
}}
source_ours() {{ grep -qF 'MODULE_AUTHOR("{_AUTHOR}")' "$1/device.c"; }}
built_ours() {{ modinfo -F author "$1" | grep -qx '{_AUTHOR}'; }}
helper_ours() {{ grep -qF 'runs a storm and writes its storm file to stdout' "$1"; }}
[ ! -e /sys/module/{_MODULE} ] || found {_LOADED} /sys/module/{_MODULE} runs_ours
for path in /var/lib/dkms/{_MODULE}/[0-9]*; do
	[ ! -L "$path/source" ] || found {_DKMS} "$path" source_ours "$path/source"
done
for path in /usr/src/{_MODULE}-*; do
	[ ! -d "$path" ] || found {_SOURCE} "$path" source_ours "$path"
done
for folder in extra updates updates/dkms; do
	for path in /lib/modules/*/$folder/{_MODULE}.ko*; do
		[ ! -f "$path" ] || found {_BUILT} "$path" built_ours "$path"
	done
done
for path in /usr/local/bin/{_MODULE} /usr/local/sbin/{_MODULE}; do
	[ ! -f "$path" ] || found {_HELPER} "$path" helper_ours "$path"
done
"""


@dataclass(frozen=True)
class _Found:
    """A file or module with the former name."""

    ours: bool
    kind: str
    path: str


def remove_former(shell: Shell, tell: Tell, step: Step) -> bool:
    """Remove ipitrace's own, report others; return whether there was anything of ipitrace's.

    Args:
        shell: the transport to the guest.
        tell: reports what was done.
        step: reports what is being done.

    Raises:
        HostError: a storm is running, or the guest refuses.
    """
    done = checked(shell.run(["sh", "-c", _LOOK]), f"looking for {_MODULE}")
    found = list(_parsed(done.stdout))
    for one in found:
        if one.ours:
            _remove(one, shell, tell, step)
        elif one.kind == _LOADED:
            tell(f"left {_MODULE} loaded: it is not ipitrace's")
        else:
            tell(f"left {plain(one.path)} alone: it is not ipitrace's")
    return any(one.ours for one in found)


def _parsed(said: bytes) -> Iterator[_Found]:
    lines = said.decode(errors="replace").splitlines()
    for line in lines:
        whose, kind, path = [*line.split(" ", 2), "", ""][:3]
        ours = whose == "ours"
        known = (ours or whose == "other") and kind in _PLACES and len(line) <= limits.STATUS_CHARS
        # The path of another's file is only printed; a path of ours is used in commands.
        if not known or (ours and not _PLACES[kind].fullmatch(path)) or len(lines) > _MOST_FOUND:
            raise HostError(
                f"The guest's answer about {_MODULE} is not valid: {shown(said)}.",
                f"Remove the files named {_MODULE} in the guest by hand.",
            )
        yield _Found(ours, kind, path)


def _remove(one: _Found, shell: Shell, tell: Tell, step: Step) -> None:
    if one.kind == _LOADED:
        unload(shell, _MODULE, tell)
        return
    what = f"removing {one.path}"
    match = _PLACES[one.kind].fullmatch(one.path)
    named = match.groups() if match else ()
    commands = [["rm", "-rf", one.path]]
    if one.kind == _DKMS:
        commands = [["dkms", "remove", "-m", _MODULE, "-v", *named, "--all"]]
    elif one.kind == _BUILT:
        commands.append(["depmod", *named])
    with step(what) as tick:
        for command in commands:
            checked(shell.run(command, timeout_s=CHANGE_S, tick=tick), what)
    tell(f"removed {one.path}")
