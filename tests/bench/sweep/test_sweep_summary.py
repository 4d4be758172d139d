"""``bench.sweep.summary``: a line for each cell, and what it could have shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated_sweep import Simulated, Told, made_run

from bench.report.analysis import analyse
from bench.results.store import ResultsFolder
from bench.sweep.summary import summary
from bench.sweep.sweep import Sweep


@pytest.mark.parametrize("blocks", [2, 8])
def test_each_cell_is_a_line_with_the_effect_that_it_could_show(
    tmp_path: Path, blocks: int
) -> None:
    run = made_run(blocks=blocks)
    folder = ResultsFolder(tmp_path)
    folder.begin(run)
    Sweep(folder, run, Simulated(run, 0.01).open_pair, Told(), 1e6).run()
    analysis = analyse(folder)
    text = summary(analysis)
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    header, _, *rows = lines
    assert header[-3:] == ["÷ one", "verdict", "would have been shown"]
    assert [(row[0], row[1]) for row in rows] == [
        (load, name) for load in ("C=1", "C=8") for name in ("one", "two", "one (again)")
    ]
    assert text.startswith("shipped:\n")
    assert rows[0][2] == f"{blocks} of {blocks}"
    if blocks == 2:
        assert "–" not in rows[1][6]
        assert text.count("too few blocks") == 4
        assert "%" not in text.split("Ratios")[0]
        return
    found = analysis.comparison("shipped", "C=1", "two", "one")
    assert found.ratio is not None
    assert found.smallest_effect is not None
    ratio = found.ratio
    assert rows[1][6:] == [
        f"{ratio.estimate:.3f} ({ratio.low:.3f}–{ratio.high:.3f})",
        "no difference shown",
        f"{found.smallest_effect - 1:.1%}",
    ]
    assert [row[7] for row in rows if row[1] == "one (again)"] == ["equal, as it is"] * 2
