"""What a sweep prints at its end: a line for each cell, with the smallest effect it could show."""

from __future__ import annotations

from collections.abc import Iterator

from bench.report.summaries import Analysis, CellSummary, Estimate
from bench.statistics import MIN_BLOCKS, POWER, Ratio

_COLUMNS = ("load", "candidate", "blocks", "tokens/s", "TTFT ms", "TPOT ms")


def summary(analysis: Analysis) -> str:
    """A Markdown table of all cells against the reference, by pair, and how it is to be read."""
    run = analysis.run
    parts = []
    for pair in run.pairs:
        header = (*_COLUMNS, f"÷ {run.reference}", "verdict", "would have been shown")
        lines = [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
        for cell in analysis.cells:
            if cell.pair == pair.name:
                lines.append(f"| {' | '.join(_row(analysis, cell))} |")
        parts.append(f"{pair.name}:\n\n" + "\n".join(lines))
    confidence = 1 - analysis.alpha
    parts.append(
        "Ratios have intervals that hold all at once with a probability of "
        f"{confidence:.1%}, and rates\nand mean latencies have one each, from {MIN_BLOCKS} blocks "
        "on. The last column is the smallest difference that\nsuch blocks would have shown with a "
        f"probability of {POWER:.0%}."
    )
    return "\n\n".join(parts)


def _row(analysis: Analysis, cell: CellSummary) -> Iterator[str]:
    yield cell.load
    yield cell.candidate
    yield f"{cell.blocks} of {cell.measured}"
    yield _estimate(cell.throughput)
    yield _estimate(cell.ttft.mean)
    yield _estimate(cell.tpot.mean)
    yield from _against_reference(analysis, cell)


def _against_reference(analysis: Analysis, cell: CellSummary) -> tuple[str, str, str]:
    reference = analysis.run.reference
    if cell.candidate == reference:
        return "", "reference", ""
    for noise in analysis.noise:
        if (noise.pair, noise.load, noise.twin) == (cell.pair, cell.load, cell.candidate):
            if noise.ratio is None or noise.holds is None:
                return _ratio(noise.ratio), "too few blocks", ""
            said = "equal, as it is" if noise.holds else "differs from its equal"
            return _ratio(noise.ratio), said, _effect(noise.ratio.smallest_effect)
    for found in analysis.comparisons:
        names = (found.pair, found.load, found.candidate, found.reference)
        if names == (cell.pair, cell.load, cell.candidate, reference):
            return _ratio(found.ratio), found.verdict, _effect(found.smallest_effect)
    return "", "", ""


def _effect(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio - 1:.1%}"


def _estimate(found: Estimate | None) -> str:
    if found is None:
        return "–"
    text = f"{found.value:.4g}"
    if found.low is None or found.high is None or found.blocks < MIN_BLOCKS:
        return text
    return f"{text} ({found.low:.4g}–{found.high:.4g})"


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "–"
    text = f"{ratio.estimate:.3f}"
    return text if ratio.blocks < MIN_BLOCKS else f"{text} ({ratio.low:.3f}–{ratio.high:.3f})"
