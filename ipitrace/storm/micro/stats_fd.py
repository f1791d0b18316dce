# SPDX-License-Identifier: Apache-2.0
"""KVM's own counters of one vCPU, through KVM_GET_STATS_FD.

The layout (header, descriptors, data) is Linux's
Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD.
"""

import os
import struct

_HEADER = struct.Struct("<6I")  # flags, name_size, num_desc, id, descriptor, data offsets
_DESCRIPTOR = struct.Struct("<IhHII")  # flags, exponent, size, offset, bucket_size; then the name
_TYPE_MASK = 0xF
_TYPE_CUMULATIVE = 0


class VcpuStats:
    """The cumulative scalar counters of one statistics descriptor; closes the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        _flags, name_size, count, _id_at, descriptor_at, self._data_at = _HEADER.unpack(
            os.pread(fd, _HEADER.size, 0)
        )
        size = _DESCRIPTOR.size + name_size
        block = os.pread(fd, size * count, descriptor_at)
        self._offsets: dict[str, int] = {}
        self._data_size = 0
        for at in range(0, size * count, size):
            flags, _exponent, words, offset, _bucket = _DESCRIPTOR.unpack_from(block, at)
            name = block[at + _DESCRIPTOR.size : at + size].split(b"\0", 1)[0].decode()
            self._data_size = max(self._data_size, offset + 8 * words)
            if flags & _TYPE_MASK == _TYPE_CUMULATIVE and words == 1:
                self._offsets[name] = offset

    def read(self) -> dict[str, int]:
        """Counter name to its present value."""
        data = os.pread(self._fd, self._data_size, self._data_at)
        return {
            name: int(struct.unpack_from("<Q", data, offset)[0])
            for name, offset in self._offsets.items()
        }

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)
