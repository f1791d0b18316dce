# SPDX-License-Identifier: Apache-2.0
"""/proc/interrupts: real and constructed text, and CPUs that come and go."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipitrace.host.files import HostFiles
from ipitrace.host.interrupts import InterruptCounts, delta, parse_interrupts, read_interrupts
from ipitrace.words.interrupts import ROWS

DATA = Path(__file__).parents[2] / "data" / "interrupts"
INTEL = (DATA / "constructed-intel.txt").read_text()


def counts(cpus: tuple[int, ...], *res: int) -> InterruptCounts:
    return InterruptCounts(cpus, {"RES": res})


def test_a_real_host() -> None:
    text = (DATA / "6.18-kvm-guest.txt").read_text()
    found = parse_interrupts(text)
    assert found.cpus == (0, 1)
    assert found.rows.keys() == ROWS.keys()
    (line,) = (line for line in text.splitlines() if line.startswith("RES:"))
    assert list(found.rows["RES"]) == [int(word) for word in line.split()[1:3]]
    assert found.rows["PIN"] == (0, 0)


def test_an_intel_host_with_a_cpu_offline() -> None:
    found = parse_interrupts(INTEL)
    assert found.cpus == (0, 1, 2, 4)
    assert found.rows["PIN"] == (1017, 88, 12003, 5)
    assert found.rows["NPI"] == (0, 0, 3, 0)
    assert found.rows["PIW"] == (40411, 2, 39001, 977)


def test_reading_it(make_files: Callable[[Mapping[str, str]], HostFiles]) -> None:
    assert read_interrupts(make_files({"/proc/interrupts": INTEL})) == parse_interrupts(INTEL)


def test_where_it_cannot_be_read(tmp_path: Path) -> None:
    assert read_interrupts(HostFiles(tmp_path)) is None


def test_what_was_added() -> None:
    later = INTEL.replace("40411 ", "40511 ").replace("4294967290", "         4")
    added = delta(parse_interrupts(INTEL), parse_interrupts(later))
    assert list(added.rows) == list(ROWS)
    assert added.rows["PIW"] == (100, 0, 0, 0)
    assert added.rows["RES"] == (10, 0, 0, 0), "32 bits wrapped"
    assert added.total("PIW") == 100


def test_a_cpu_that_went_and_one_that_came() -> None:
    added = delta(counts((0, 1, 2), 10, 20, 30), counts((0, 2, 3), 11, 32, 43))
    assert added.cpus == (0, 1, 2, 3)
    assert added.rows["RES"] == (1, None, 2, None)
    assert added.total("RES") is None


def test_a_count_that_went_backwards_is_not_known() -> None:
    assert delta(counts((0, 1), 1000, 5), counts((0, 1), 3, 6)).rows["RES"] == (None, 1)


def test_a_row_the_host_lacks() -> None:
    added = delta(parse_interrupts(INTEL), counts((0, 1, 2, 4), 0, 51234, 40123, 33001))
    assert added.rows.keys() == {"RES"}
    assert added.total("PIW") is None
    assert added.total("RES") == 6


@pytest.mark.parametrize("text", ["", "\n", "RES: 1 2\n", "CPU0 CPUx\nRES: 1 2\n"])
def test_text_that_is_none_of_it(text: str) -> None:
    assert parse_interrupts(text) == InterruptCounts((), {})


def test_a_cut_off_text_gives_whole_rows_only() -> None:
    whole = parse_interrupts(INTEL)
    for line_end in range(INTEL.index("NMI"), len(INTEL)):
        cut = parse_interrupts(INTEL[:line_end])
        for name, row in cut.rows.items():
            assert row[:-1] == whole.rows[name][:-1]
            assert len(row) == len(whole.cpus)
            # The last number itself may be cut: "17" of "177" is a number too.
            assert str(whole.rows[name][-1]).startswith(str(row[-1]))


@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    found = parse_interrupts(text)
    assert all(len(row) == len(found.cpus) for row in found.rows.values())


online = st.dictionaries(st.integers(0, 7), st.integers(0, 2**32 - 1), min_size=1)


@given(online, st.dictionaries(st.integers(0, 7), st.integers(0, 2**31 - 1)), st.data())
def test_differences_are_right_or_not_known(
    first: dict[int, int], grown: dict[int, int], data: st.DataObject
) -> None:
    last = {cpu: (first.get(cpu, 0) + n) % 2**32 for cpu, n in grown.items()}
    before_cpus = tuple(data.draw(st.permutations(list(first))))
    after_cpus = tuple(sorted(last))
    added = delta(
        counts(before_cpus, *(first[cpu] for cpu in before_cpus)),
        counts(after_cpus, *(last[cpu] for cpu in after_cpus)),
    )
    expected = [grown[cpu] if cpu in first and cpu in grown else None for cpu in added.cpus]
    assert list(added.rows["RES"]) == expected
