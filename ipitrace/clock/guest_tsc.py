# SPDX-License-Identifier: Apache-2.0
"""Host TSC to a guest's TSC and back: guest = ((host x ratio) >> frac_bits) + offset.

All arithmetic is modulo 2^64, as in hardware: VMX with 48 fraction bits (Intel SDM
vol. 3C, "Time-Stamp Counter Offsetting and Scaling"), SVM with 32 (AMD APM vol. 2,
"TSC Ratio MSR").
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Span = tuple[int, int]
"""First and last CLOCK_MONOTONIC ns of an interval, both inclusive."""

_LOW = np.uint64(0xFFFF_FFFF)
_HALF = np.uint64(32)
_WORD_BITS = 64
_MAX_FRAC_BITS = 48
_MAX_RATIO = 1 << 60
_LARGEST_DOUBLE = 2.0**64 - 2.0**11  # the largest double below 2^64
_TOLERANCE = 250e-6  # default of kvm.tsc_tolerance_ppm: KVM does not scale smaller differences


@dataclass(frozen=True)
class GuestTsc:
    """The parameters that map the host's TSC to one vCPU's TSC.

    Attributes:
        offset: added after scaling; signed, or its value modulo 2^64.
        ratio: fixed point with `frac_bits` fraction bits; not 0, and below 2^60.
        frac_bits: 48 on VMX, 32 on SVM; 0 with a ratio of 1 if there is no scaling.
    """

    offset: int
    ratio: int = 1
    frac_bits: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.ratio < _MAX_RATIO or not 0 <= self.frac_bits <= _MAX_FRAC_BITS:
            raise ValueError(f"invalid TSC ratio: {self.ratio} with {self.frac_bits} fraction bits")

    @property
    def scale(self) -> float:
        """Guest cycles per host cycle."""
        return float(self.ratio) / float(1 << self.frac_bits)

    def to_guest(self, host_tsc: NDArray[np.int64] | NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The guest's TSC at these host TSCs; any shape."""
        with np.errstate(over="ignore"):
            return self._scaled(np.asarray(host_tsc).astype(np.uint64)) + self._offset

    def to_host(self, guest_tsc: NDArray[np.int64] | NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The first host TSC at which the guest's TSC is at least `guest_tsc`; any shape.

        to_host(to_guest(h)) is h if the guest's TSC is not slower than the host's. Otherwise it is
        the first host cycle of the same guest cycle. This requires that the scaled host TSC and
        the result fit 64 bits, which they do for centuries.
        """
        with np.errstate(over="ignore"):
            wanted = np.asarray(guest_tsc).astype(np.uint64) - self._offset
            if self.ratio == 1 << self.frac_bits:
                return np.asarray(wanted)
            guess = np.minimum(wanted.astype(np.float64) / self.scale, _LARGEST_DOUBLE)
            host = guess.astype(np.uint64)
            # A double has 53 bits; the remainder is corrected here.
            remainder = _signed(wanted - self._scaled(host))
            host = host + np.rint(remainder / self.scale).astype(np.int64).astype(np.uint64)
            # The remaining error is below one cycle, so the lower word of the product suffices.
            short = _signed((wanted << np.uint64(self.frac_bits)) - host * np.uint64(self.ratio))
            return host - (-short // self.ratio).astype(np.uint64)

    @property
    def _offset(self) -> np.uint64:
        return np.uint64(self.offset % (1 << _WORD_BITS))

    def _scaled(self, host: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Bits frac_bits and up of the 128-bit product, computed from four 32 x 32 bit products."""
        if self.ratio == 1 << self.frac_bits:
            return host
        ratio_high, ratio_low = np.uint64(self.ratio >> 32), np.uint64(self.ratio) & _LOW
        high, low = host >> _HALF, host & _LOW
        low_low, low_high = low * ratio_low, low * ratio_high
        high_low, high_high = high * ratio_low, high * ratio_high
        middle = (low_low >> _HALF) + (low_high & _LOW) + (high_low & _LOW)
        bottom = (low_low & _LOW) | (middle << _HALF)
        if self.frac_bits == 0:
            return np.asarray(bottom)
        top = high_high + (low_high >> _HALF) + (high_low >> _HALF) + (middle >> _HALF)
        frac = np.uint64(self.frac_bits)
        product: NDArray[np.uint64] = (top << (np.uint64(_WORD_BITS) - frac)) | (bottom >> frac)
        return product


def _signed(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Convert differences modulo 2^64 to signed numbers."""
    return np.asarray(words).astype(np.int64)


def own_guest_tsc(
    offset: int | None, guest_khz: int | None, host_hz: float | None
) -> tuple[GuestTsc | None, str | None]:
    """The TSC of a VM that ipitrace created, or None and the reason why it is unknown.

    KVM reports the offset of such a vCPU but not the ratio. It scales only a guest whose requested
    frequency differs from the host's. If the two frequencies are equal, the ratio is 1.

    Args:
        offset: the vCPU's KVM_VCPU_TSC_OFFSET attribute.
        guest_khz: its KVM_GET_TSC_KHZ.
        host_hz: the measured rate of the host TSC.
    """
    if offset is None:
        return None, "KVM does not report the vCPU's TSC offset"
    if guest_khz is None or host_hz is None:
        return GuestTsc(offset), None
    difference = guest_khz * 1000 / host_hz - 1
    if abs(difference) > _TOLERANCE:
        return None, f"the guest's TSC rate differs from the host's by {difference * 1e6:.0f} ppm"
    return GuestTsc(offset), None


def offset_changes(
    start: int | None, end: int | None, window: Span, write_ts_ns: Iterable[int]
) -> list[Span]:
    """The interval of a run in which a vCPU's TSC offset may differ from the offset that was read.

    The two readings decide whether there is one. A kvm_write_tsc_offset event alone does not prove
    a change: KVM also writes the current offset again, and some backends do not apply the value
    that they print. If the readings differ, the events limit the interval: before the first event
    the offset is `start`, after the last event it is `end`, in between it is either.

    Args:
        start: the offset before the run, None if it could not be read.
        end: the offset after the run, likewise.
        window: the run.
        write_ts_ns: the vCPU's kvm_write_tsc_offset events, in any order.

    Returns:
        At most one interval; an empty list if the offset did not change.
    """
    inside = [int(ts_ns) for ts_ns in write_ts_ns if window[0] <= ts_ns <= window[1]]
    if start is not None and end is not None:
        if start == end:
            return []
        return [(min(inside), max(inside))] if inside else [window]
    if not inside:
        return []
    first = window[0] if start is None else min(inside)
    last = window[1] if end is None else max(inside)
    return [(first, last)]
