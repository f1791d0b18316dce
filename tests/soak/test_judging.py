# SPDX-License-Identifier: Apache-2.0
"""The soak's judge: leaks are found, and what only looks like one is not."""

import random
from dataclasses import replace

import pytest
from judging import Usage, judge_memory, judge_usage, slope

from ipitrace.base.units import MIB

TIMES_S = [20.0 * i for i in range(180)]
FLAT = Usage(200 * MIB, 40, 3, 0, 30, 50, 0)


def sizes(per_hour_mib: float, *, step_mib: float = 0.0) -> list[int]:
    """200 MiB with noise of some 100 KiB, growth, and a step in the middle."""
    noise = random.Random(7)  # noqa: S311
    return [
        int((200 + per_hour_mib * at_s / 3600 + step_mib * (at_s > 1800)) * MIB)
        + noise.randrange(-50_000, 50_000)
        for at_s in TIMES_S
    ]


@pytest.mark.parametrize(("per_hour_mib", "found"), [(0.0, False), (0.3, False), (3.0, True)])
def test_growth_is_found(per_hour_mib: float, found: bool) -> None:  # noqa: FBT001
    assert bool(judge_memory("it", 0.0, TIMES_S, sizes(per_hour_mib))) == found


def test_a_leak_of_a_kibibyte_a_look_is_found_in_an_hour() -> None:
    looks_per_hour, bytes_a_look = 3600, 1024
    assert judge_memory("it", 0.0, TIMES_S, sizes(looks_per_hour * bytes_a_look / MIB))


def test_the_warm_up_is_no_growth() -> None:
    grown = [50 * MIB if at_s < 600 else size for at_s, size in zip(TIMES_S, sizes(0), strict=True)]
    assert judge_memory("it", 600.0, TIMES_S, grown) == []


def test_too_few_samples_tell_nothing() -> None:
    assert slope(TIMES_S[:4], sizes(100)[:4]) is None


@pytest.mark.parametrize("name", ["descriptors", "threads", "children", "bpf_objects", "mounts"])
def test_one_more_of_anything_at_rest_is_found(name: str) -> None:
    more = replace(FLAT, **{name: getattr(FLAT, name) + 1})
    assert judge_usage("it", 30.0, TIMES_S[:3], [FLAT, FLAT, FLAT]) == []
    assert judge_usage("it", 30.0, TIMES_S[:3], [more, FLAT, FLAT]) == []
    (said,) = judge_usage("it", 10.0, TIMES_S[:3], [FLAT, FLAT, more])
    assert name in said
