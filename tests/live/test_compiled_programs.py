# SPDX-License-Identifier: Apache-2.0
"""Programs from the cache trace as those that were just compiled, and odd entries are not used."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from host_state import open_descriptors
from workers import Worker, nap

from ipitrace.base.errors import HostError
from ipitrace.tracer import Tracer, bcc_compile
from ipitrace.tracer.bpf_maps import BpfMap
from ipitrace.tracer.bpf_object import BpfObject, MapSpec
from ipitrace.tracer.cache import keep, kept
from ipitrace.tracer.kernel import n_tids
from ipitrace.tracer.loading import Bpf
from ipitrace.words.events import Kind

pytestmark = pytest.mark.live("root", "bpf")

HASH, ARRAY, PERCPU_ARRAY = 1, 2, 6  # enum bpf_map_type, include/uapi/linux/bpf.h


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.stop()


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one with each use of bcc."""
    made: list[None] = []
    import_bcc = bcc_compile.import_bcc

    def counted() -> Any:
        made.append(None)
        return import_bcc()

    monkeypatch.setattr(bcc_compile, "import_bcc", counted)
    return made


def trace(worker: Worker, n_vcpus: int = 2, **options: Any) -> None:
    """Load, and trace a thread that is the last vCPU: everything is recorded, once."""
    with Tracer.load(
        pid=os.getpid(), n_vcpus=n_vcpus, only=["sched_switch", "kvm_exit"], **options
    ) as tracer:
        nobody = n_tids()  # no thread has so high an id
        tracer.set_vcpu_threads([*range(nobody - n_vcpus + 1, nobody), worker.tid])
        tracer.attach()
        worker.do(lambda: nap(50))
        tracer.detach()
        tracer.drain()
        events, seen = tracer.take(), tracer.seen()
    assert len(events) == seen.sum() == seen[Kind.SCHED_SWITCH, n_vcpus - 1] >= 100
    assert set(events["vcpu"]) == {n_vcpus - 1}


def test_the_second_load_compiles_nothing(
    fresh_cache: Path, worker: Worker, compilations: list[None]
) -> None:
    before = open_descriptors()
    trace(worker)
    assert len(compilations) == 1
    trace(worker)
    trace(worker, n_vcpus=64)
    assert len(compilations) == 1, "nothing depends on the process and its vCPUs"
    trace(worker, slots_per_ring=1024)
    assert len(compilations) == 2
    assert len(list(fresh_cache.iterdir())) == 3  # and what BTF says about events
    assert open_descriptors() == before


LOAD = """
import json, os, sys
from ipitrace.tracer import Tracer
with Tracer.load(pid=os.getpid(), n_vcpus=1, only=["sched_switch"]) as tracer:
    tracer.attach()
    libraries = [word for word in open("/proc/self/maps").read().split() if "libLLVM" in word]
    print(json.dumps([tracer.load_s, "bcc" in sys.modules, bool(libraries), tracer.attached]))
"""


def test_the_compiler_is_not_even_loaded(fresh_cache: Path) -> None:
    def load() -> Any:
        command = [sys.executable, "-c", LOAD]
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

    _, *first = load()
    assert first == [True, True, ["sched_switch"]]
    load_s, *second = load()
    assert second == [False, False, ["sched_switch"]]
    assert load_s > 0
    assert list(fresh_cache.iterdir())


def programs_entry(folder: Path) -> tuple[str, Any]:
    """The key and the value of the entry with the programs."""
    for path in folder.iterdir():
        value = kept(path.stem)
        if "made" in value:
            return path.stem, value
    raise AssertionError("there is no entry with programs")


def change(name: str, new: object) -> Callable[[Any], None]:
    def changed(value: Any) -> None:
        *way, last = name.split(".")
        for step in way:
            value = value[int(step) if step.isdigit() else step]
        value[int(last) if last.isdigit() else last] = new

    return changed


# Each is an intact entry of the user's own, which this version would not have written.
FOREIGN = {
    "another compiler": change("compiler.0.changed_ns", 1),
    "a compiler that is gone": change("compiler.0.path", "/nonexistent/libbcc.so.0"),
    "a path that is none": change("compiler.0.path", "\0"),
    "no maps": change("made.maps", []),
    "a map of no type": change("made.maps.0.map_type", None),
    "a map with a path as its name": change("made.maps.0.name", "../x"),
    "a map of a negative size": change("made.maps.0.key_size", -4),
    "programs that are none": change("made.programs", 7),
    "code that is none": change("made.programs.0.code_hex", "zz"),
    "no code": change("made.programs.0.code_hex", ""),
    "other references": change("made.programs.0.references", []),
    "a further key": change("made.programs.0.more", 1),
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_an_entry_that_does_not_fit_is_compiled_again(
    fresh_cache: Path, worker: Worker, compilations: list[None], foreign: str
) -> None:
    trace(worker)
    key, value = programs_entry(fresh_cache)
    FOREIGN[foreign](value)
    keep(key, value)
    trace(worker)
    assert len(compilations) == 2
    trace(worker)
    assert len(compilations) == 2, "it was replaced"


def test_a_damaged_entry_is_compiled_again(
    fresh_cache: Path, worker: Worker, compilations: list[None]
) -> None:
    trace(worker)
    for path in fresh_cache.iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    trace(worker)
    assert len(compilations) == 2


def test_without_a_cache_everything_is_compiled(
    fresh_cache: Path, worker: Worker, compilations: list[None]
) -> None:
    fresh_cache.parent.chmod(0o777)
    trace(worker)
    trace(worker)
    assert len(compilations) == 2
    assert not list(fresh_cache.parent.iterdir())


def test_maps_of_integers() -> None:
    table = BpfMap(MapSpec("a_hash", HASH, 4, 8, 3, 0))
    table[7] = 1 << 40
    table[8] = 2
    table[7] = (1 << 40) + 1
    assert dict(table.items()) == {7: (1 << 40) + 1, 8: 2}
    del table[7]
    with pytest.raises(KeyError):
        del table[7]
    with pytest.raises(KeyError):
        _ = table[7]
    table[9] = table[10] = 0
    with pytest.raises(OSError, match="Argument list too long"):
        table[11] = 0
    table.close()
    per_cpu = BpfMap(MapSpec("per_cpu", PERCPU_ARRAY, 4, 4, 2, 0))
    assert [per_cpu[0], per_cpu[1]] == [0, 0]
    per_cpu.close()


def test_maps_that_are_refused_leave_no_descriptor() -> None:
    before = open_descriptors()
    good = MapSpec("good", ARRAY, 4, 8, 1, 0)
    with pytest.raises(HostError, match="refused to create the maps"):
        Bpf(BpfObject((good, MapSpec("bad", ARRAY, 4, 8, 0, 0)), ()))
    assert open_descriptors() == before
    Bpf(BpfObject((good,), ()), {"good": 1000}).close()
    assert open_descriptors() == before
