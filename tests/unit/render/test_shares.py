# SPDX-License-Identifier: Apache-2.0
"""Percentages divide out from what stands beside them, or the heading says what is divided."""

import re
from pathlib import Path

import numpy as np
import pytest
from recordings import read_table

from ipitrace.recording.reader import read_run
from ipitrace.render.run.tables import render_run

RECORDINGS = sorted(
    path for path in (Path(__file__).parents[2] / "data/recordings").iterdir() if path.is_dir()
)
WIDE = 400


def shown(recording: Path) -> str:
    return render_run(read_run(recording), width=WIDE)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.name)
def test_what_stands_beside_a_percentage_divides_out(recording: Path) -> None:
    text = shown(recording)
    followed = re.findall(r"the (\d+) of (\d+) IPIs \(([\d.]+%)\)", text)
    assert followed
    assert all(f"{int(part) / int(whole):.1%}" == told for part, whole, told in followed)
    costs = re.findall(
        r"[SDR] +(\d+) +([+-]\d+) \((\S+%)\) +\[.*?\] +([+-]\d+) \((\S+%)\)",
        text.partition("Observer cost")[2],
    )
    assert costs
    for off, counting, counting_told, full, full_told in costs:
        assert f"{int(counting) / int(off):+.1%}" == counting_told
        assert f"{int(full) / int(off):+.1%}" == full_told


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.name)
def test_a_step_is_divided_as_its_heading_says(recording: Path) -> None:
    """The sum of the step's cycles over the sum of D, of the IPIs that went this way."""
    text, run = shown(recording), read_run(recording)
    if run.schema_version > 1:
        pytest.skip("its steps are without the probes' weight")
    assert (
        "of D: the sum of the cycles of the step, divided by the sum of D, both of these IPIs"
        in text
    )
    read = read_table(recording, "spans")
    spans = {name: np.array(read[name].to_pylist(), dtype=object) for name in read.column_names}
    for row in run.scenarios:
        assert row.stages is not None
        way = row.stages.sequences[0].stages
        own = (spans["scenario"] == row.name) & (spans["sequence"] == " > ".join(way))
        assert np.count_nonzero(own) == row.stages.sequences[0].spans
        stamps = np.stack([spans[f"{stage}_tsc"][own].astype(np.int64) for stage in way])
        total = (stamps[-1] - stamps[0]).sum()
        table = text.partition(f"Stages of {row.name},")[2].partition("\n\n")[0]
        for before, stage, after in zip(stamps, way[1:], stamps[1:], strict=False):
            (told,) = re.findall(rf"^{stage} .* (\S+)$", table, re.MULTILINE)
            assert told in {f"{(after - before).sum() / total:.1%}", "?"}


def test_what_exits_cover_says_what_is_divided() -> None:
    (amd,) = (path for path in RECORDINGS if path.name == "amd-tcg")
    assert "divided by the sum of D of the same IPIs (not by a p50)" in shown(amd)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.name)
def test_a_corrected_step_is_divided_by_the_untraced_d(recording: Path) -> None:
    text, run = shown(recording), read_run(recording)
    if run.schema_version == 1:
        pytest.skip("it has the recorded steps only")
    checked = 0
    for row in run.scenarios:
        assert row.stages is not None
        corrected = row.stages.corrected
        if corrected is None or not corrected.holds:
            continue
        assert row.deliver_cycles is not None
        assert corrected.deliver_cycles == row.deliver_cycles.p50
        table = text.partition(f"Stages of {row.name},")[2].partition("\n\n")[0]
        way = [step for step in corrected.steps if step.step_cycles is not None]
        assert sum(step.step_cycles or 0 for step in way) == corrected.sum_cycles
        for step in way:
            (told,) = re.findall(rf"^{step.stage} .* (\S+)$", table, re.MULTILINE)
            exact = (step.step_cycles or 0) / row.deliver_cycles.p50
            assert step.share_of_deliver == pytest.approx(exact, abs=5e-5)
            assert told in {f"{step.share_of_deliver:.1%}", "?"}
            checked += 1
    assert checked
