# SPDX-License-Identifier: Apache-2.0
"""BPF maps whose keys and values are unsigned integers."""

import ctypes
import errno
import os
from collections.abc import Iterator
from typing import Final

from ipitrace.host.bpf_call import bpf
from ipitrace.host.files import HOST, HostFiles, parse_cpu_list
from ipitrace.tracer.bpf_object import MapSpec

# include/uapi/linux/bpf.h: enum bpf_cmd and enum bpf_map_type.
_MAP_CREATE: Final = 0
_MAP_LOOKUP_ELEM: Final = 1
_MAP_UPDATE_ELEM: Final = 2
_MAP_DELETE_ELEM: Final = 3
_MAP_GET_NEXT_KEY: Final = 4
_OBJ_GET_INFO_BY_FD: Final = 15
_NOEXIST: Final = 1  # BPF_NOEXIST
_PER_CPU: Final = frozenset({5, 6, 10})  # PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH
_NAME_BYTES: Final = 16  # BPF_OBJ_NAME_LEN, with the NUL
_PER_CPU_BYTES: Final = 8  # a CPU's value is rounded up to this


class _Create(ctypes.Structure):
    _fields_ = (
        ("map_type", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("numa_node", ctypes.c_uint32),
        ("map_name", ctypes.c_char * _NAME_BYTES),
    )


class _Element(ctypes.Structure):
    _fields_ = (
        ("map_fd", ctypes.c_uint32),
        ("key", ctypes.c_uint64),
        ("value", ctypes.c_uint64),  # or the next key
        ("flags", ctypes.c_uint64),
    )


class _Info(ctypes.Structure):
    _fields_ = (
        ("bpf_fd", ctypes.c_uint32),
        ("info_len", ctypes.c_uint32),
        ("info", ctypes.c_uint64),
    )


class _MapInfo(ctypes.Structure):
    """The beginning of struct bpf_map_info."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
    )


def describe_map(fd: int, name: str) -> MapSpec:
    """The definition of an existing map. Raises OSError."""
    found = _MapInfo()
    size = ctypes.sizeof(found)
    bpf(_OBJ_GET_INFO_BY_FD, _Info(bpf_fd=fd, info_len=size, info=ctypes.addressof(found)))
    return MapSpec(
        name=name,
        map_type=found.type,
        key_size=found.key_size,
        value_size=found.value_size,
        max_entries=found.max_entries,
        flags=found.map_flags,
    )


class BpfMap:
    """A map of this process; its keys and values are integers of the map's sizes."""

    def __init__(self, spec: MapSpec) -> None:
        """Create the map. Raises OSError."""
        self._spec = spec
        self.map_fd = bpf(
            _MAP_CREATE,
            _Create(
                map_type=spec.map_type,
                key_size=spec.key_size,
                value_size=spec.value_size,
                max_entries=spec.max_entries,
                map_flags=spec.flags,
                map_name=spec.name.encode()[: _NAME_BYTES - 1],
            ),
        )

    def __getitem__(self, key: int) -> int:
        """The value of `key`; the sum over all CPUs for a per-CPU map. Raises KeyError."""
        n_values, n_bytes = 1, self._spec.value_size
        if self._spec.map_type in _PER_CPU:
            n_values = _possible_cpus()
            n_bytes = -(-n_bytes // _PER_CPU_BYTES) * _PER_CPU_BYTES
        memory = ctypes.create_string_buffer(n_values * n_bytes)
        self._element(_MAP_LOOKUP_ELEM, key, memory)
        pieces = (memory.raw[i * n_bytes :][: self._spec.value_size] for i in range(n_values))
        return sum(int.from_bytes(piece, "little") for piece in pieces)

    def __setitem__(self, key: int, value: int) -> None:
        """Add or replace a value. Raises OSError, for example if the map is full."""
        self._update(key, value, 0)

    def insert(self, key: int, value: int) -> None:
        """Add a value. Raises FileExistsError if the key has one, or OSError."""
        self._update(key, value, _NOEXIST)

    def push(self, value: int) -> None:
        """Append a value to a queue. Raises OSError, for example if the queue is full."""
        self._update(None, value, 0)

    def __delitem__(self, key: int) -> None:
        """Remove a key. Raises KeyError."""
        self._element(_MAP_DELETE_ELEM, key)

    def keys(self) -> Iterator[int]:
        """The keys. While the map changes, some may be missing or be found twice."""
        following = ctypes.create_string_buffer(self._spec.key_size)
        key: int | None = None
        for _ in range(2 * self._spec.max_entries):  # a removed key restarts the kernel's search
            try:
                self._element(_MAP_GET_NEXT_KEY, key, following)
            except KeyError:
                return
            key = int.from_bytes(following.raw, "little")
            yield key

    def items(self) -> Iterator[tuple[int, int]]:
        """The keys and values; see keys()."""
        for key in self.keys():
            try:
                yield key, self[key]
            except KeyError:
                continue

    def close(self) -> None:
        """Close the descriptor; a mapping of the map stays valid."""
        os.close(self.map_fd)

    def _update(self, key: int | None, value: int, flags: int) -> None:
        raw = value.to_bytes(self._spec.value_size, "little")
        memory = ctypes.create_string_buffer(raw, len(raw))
        self._element(_MAP_UPDATE_ELEM, key, memory, flags)

    def _element(
        self,
        command: int,
        key: int | None,
        value: "ctypes.Array[ctypes.c_char] | None" = None,
        flags: int = 0,
    ) -> None:
        size = self._spec.key_size
        held = None if key is None else ctypes.create_string_buffer(key.to_bytes(size, "little"))
        attr = _Element(
            map_fd=self.map_fd,
            key=0 if held is None else ctypes.addressof(held),
            value=0 if value is None else ctypes.addressof(value),
            flags=flags,
        )
        try:
            bpf(command, attr)
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise KeyError(key) from error
            raise


def _possible_cpus(files: HostFiles = HOST) -> int:
    """The number of values of a per-CPU map's key: one for each possible CPU."""
    return len(parse_cpu_list(files.text("/sys/devices/system/cpu/possible") or "0"))
