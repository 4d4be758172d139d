"""Candidates against each other: block by block, corrected for their number, beyond the noise.

All ordered pairs of candidates that are not twins are compared under each load with each model
pair, so that nothing depends on which of them is called the reference. A comparison and its
opposite are one interval seen from both sides. Intervals of all comparisons, those of the twins
with their originals included, hold at once (Bonferroni).

Ahead, or behind, is a candidate whose interval lies further from 1 than what two equal servers
differed by under the same load. Blocks count in which neither side failed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from bench.report.cells import CellBlocks
from bench.report.summaries import Cause, CellSummary, Comparison, Noise, TimeSpent, Verdict
from bench.results.records import Candidate, Run
from bench.statistics import MIN_BLOCKS, Ratio, corrected, paired_ratio

Cells = Mapping[tuple[str, str, str], CellBlocks]
"""By pair, candidate and load."""

Summaries = Mapping[tuple[str, str, str], CellSummary]
"""By pair, candidate and load."""


def compared(run: Run) -> list[Candidate]:
    """The candidates that are compared with each other: all but twins."""
    return [candidate for candidate in run.candidates if candidate.twin_of is None]


def comparisons_in(run: Run) -> int:
    """How many comparisons share a run's alpha: of unordered pairs of candidates and of twins with
    their originals, under each load with each model pair."""
    candidates = len(compared(run))
    twins = len(run.candidates) - candidates
    each = candidates * (candidates - 1) // 2 + twins
    return each * len(run.loads) * len(run.pairs)


def ratio_of(
    values: Mapping[int, float], reference: Mapping[int, float], alpha: float
) -> Ratio | None:
    """Of numbers by block; None with fewer than two blocks in which both are positive."""
    blocks = sorted(b for b in values.keys() & reference.keys() if values[b] and reference[b])
    if len(blocks) < 2:
        return None
    return paired_ratio([values[b] for b in blocks], [reference[b] for b in blocks], alpha)


def noises(run: Run, cells: Cells, alpha: float) -> tuple[Noise, ...]:
    """Each twin against its original. ``alpha``: of all comparisons together."""
    each = corrected(alpha, comparisons_in(run))
    found = []
    for pair, load, candidate in itertools.product(run.pairs, run.loads, run.candidates):
        if candidate.twin_of is None:
            continue
        ours = cells[pair.name, candidate.name, load.name].throughput
        theirs = cells[pair.name, candidate.twin_of, load.name].throughput
        ratio = ratio_of(ours, theirs, each)
        blocks = len(ours.keys() & theirs.keys())
        enough = ratio is not None and blocks >= MIN_BLOCKS
        found.append(
            Noise(
                pair=pair.name,
                load=load.name,
                candidate=candidate.twin_of,
                twin=candidate.name,
                ratio=ratio,
                floor=1.0 if ratio is None else math.exp(abs(math.log(ratio.estimate))),
                blocks=blocks,
                holds=ratio.low <= 1 <= ratio.high if ratio is not None and enough else None,
            )
        )
    return tuple(found)


def floor_of(noise: Sequence[Noise], pair: str, load: str) -> float | None:
    """The most that equal servers differed by under a load; None if there were none."""
    known = [n.floor for n in noise if (n.pair, n.load) == (pair, load) and n.ratio is not None]
    return max(known, default=None)


def comparisons(
    run: Run, cells: Cells, summaries: Summaries, noise: Sequence[Noise], alpha: float
) -> tuple[Comparison, ...]:
    """All ordered pairs of candidates. ``alpha``: of all comparisons together."""
    each = corrected(alpha, comparisons_in(run))
    found = []
    for pair, load in itertools.product(run.pairs, run.loads):
        floor = floor_of(noise, pair.name, load.name)
        for ours, theirs in itertools.permutations(compared(run), 2):
            places = [(pair.name, side.name, load.name) for side in (ours, theirs)]
            sides = [cells[place] for place in places]
            rates = [side.throughput for side in sides]
            ratio = ratio_of(rates[0], rates[1], each)
            blocks = len(rates[0].keys() & rates[1].keys())
            lost = max(side.measured for side in sides) - blocks
            limit = floor or 1.0
            hurt = any(side.problems for side in sides)
            failed = hurt and (not blocks or blocks + lost >= MIN_BLOCKS)
            found.append(
                Comparison(
                    pair=pair.name,
                    load=load.name,
                    candidate=ours.name,
                    reference=theirs.name,
                    ratio=ratio,
                    floor=limit,
                    floor_known=floor is not None,
                    verdict=verdict(ratio, blocks, limit, failed),
                    blocks=blocks,
                    lost=lost,
                    smallest_effect=smallest_effect(ratio, limit),
                    cause=cause(*(summaries[place] for place in places)),
                    e2e_ratio=ratio_of(sides[0].mean_e2e, sides[1].mean_e2e, each),
                )
            )
    return tuple(found)


def verdict(ratio: Ratio | None, blocks: int, floor: float, failed: bool) -> Verdict:
    """What a comparison has shown. ``failed``: whether it lacks blocks as they do not count."""
    if ratio is None or blocks < MIN_BLOCKS:
        return "failed" if failed else "too few blocks"
    if ratio.low > floor:
        return "ahead"
    if ratio.high < 1 / floor:
        return "behind"
    return "no difference shown"


def smallest_effect(ratio: Ratio | None, floor: float) -> float | None:
    """The true ratio, above 1, that would have been shown to be beyond the noise floor; None with
    too few blocks to show anything."""
    if ratio is None or ratio.blocks < MIN_BLOCKS:
        return None
    return ratio.smallest_effect * floor


def cause(ours: CellSummary, theirs: CellSummary) -> Cause | None:
    """What differs most; None where either was not followed."""
    if ours.time_spent is None or theirs.time_spent is None:
        return None
    spent, spent_reference = ours.time_spent, theirs.time_spent
    group = _most_changed(spent, spent_reference)
    return Cause(
        group=group,
        group_ms=spent.group_ms_per_token[group],
        group_ms_reference=spent_reference.group_ms_per_token[group],
        ms_per_token=spent.ms_per_token,
        ms_per_token_reference=spent_reference.ms_per_token,
        cores=ours.server_cores,
        cores_reference=theirs.server_cores,
    )


def _most_changed(ours: TimeSpent, theirs: TimeSpent) -> str:
    """The group that changed most in the direction in which the time per token did."""
    sign = 1 if ours.ms_per_token >= theirs.ms_per_token else -1
    changes = {
        group: sign * (spent - theirs.group_ms_per_token[group])
        for group, spent in ours.group_ms_per_token.items()
    }
    return max(changes, key=lambda group: changes[group])
