"""Whether a candidate has a valley against another: a throughput ratio that is lower at 6 to 16
clients than at fewer and at more.

For each block, the mean log ratio over the closed loops of the middle zone, less that over those of
a neighbouring zone: a *contrast*, one number for each block, with Student's interval. All
contrasts of a run hold at once (Bonferroni). There is a valley only if both contrasts of a pair of
candidates lie below 0 by more than the same contrast of two equal servers. So a candidate that is
behind everywhere by as much has none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from bench.report.comparison import Cells, Summaries, compared
from bench.report.summaries import Comparison, Contrast, Valley, ValleyPoint, ValleyVerdict
from bench.results.records import Run
from bench.statistics import MIN_BLOCKS, corrected, paired_ratio

FEW, MIDDLE, MANY = (1, 4), (6, 16), (32, None)
"""Numbers of clients, both ends included: the zones of the sources' overhead valley."""

_NEIGHBOURS: tuple[tuple[Literal["few clients", "many clients"], tuple[int, int | None]], ...] = (
    ("few clients", FEW),
    ("many clients", MANY),
)


def valleys(
    run: Run,
    cells: Cells,
    summaries: Summaries,
    comparisons: Sequence[Comparison],
    alpha: float,
) -> tuple[Valley, ...]:
    """For all ordered pairs of candidates that are not twins; ``alpha``: of all together."""
    candidates = len(compared(run))
    twins = len(run.candidates) - candidates
    count = 2 * len(run.pairs) * (candidates * (candidates - 1) // 2 + twins)
    each = corrected(alpha, count)
    found = []
    of = {(c.pair, c.load, c.candidate, c.reference): c for c in comparisons}
    for pair in run.pairs:
        floors = _floors(run, cells, pair.name, each)
        for ours, theirs in itertools.permutations(compared(run), 2):
            points = tuple(
                ValleyPoint(
                    load=name,
                    concurrency=clients,
                    ratio=of[pair.name, name, ours.name, theirs.name].ratio,
                    orchestration_share=summaries[pair.name, ours.name, name].orchestration_share,
                    orchestration_share_reference=summaries[
                        pair.name, theirs.name, name
                    ].orchestration_share,
                )
                for name, clients in _closed_loops(run)
            )
            contrasts = _contrasts(run, cells, pair.name, ours.name, theirs.name, each)
            verdict, text = _judge(run, contrasts, floors, points)
            found.append(
                Valley(pair.name, ours.name, theirs.name, verdict, points, contrasts, text)
            )
    return tuple(found)


def _closed_loops(run: Run) -> list[tuple[str, int]]:
    loops = [
        (load.name, load.concurrency)
        for load in run.loads
        if load.kind == "closed" and load.concurrency is not None
    ]
    return sorted(loops, key=lambda loop: loop[1])


def _in_zone(run: Run, zone: tuple[int, int | None]) -> list[str]:
    least, most = zone
    return [
        name
        for name, clients in _closed_loops(run)
        if least <= clients and (most is None or clients <= most)
    ]


def _contrasts(
    run: Run, cells: Cells, pair: str, ours: str, theirs: str, alpha: float
) -> tuple[Contrast, ...]:
    """Those that two blocks or more measured in full."""
    middle = _zone_means(cells, pair, ours, theirs, _in_zone(run, MIDDLE))
    found = []
    for beside, zone in _NEIGHBOURS:
        outside = _zone_means(cells, pair, ours, theirs, _in_zone(run, zone))
        blocks = sorted(middle.keys() & outside.keys())
        if len(blocks) >= 2:
            inside = [middle[block] for block in blocks]
            ratio = paired_ratio(inside, [outside[block] for block in blocks], alpha)
            found.append(Contrast(beside, ratio))
    return tuple(found)


def _zone_means(
    cells: Cells, pair: str, ours: str, theirs: str, loads: Sequence[str]
) -> dict[int, float]:
    """By block in which all loads were measured, the geometric mean of their ratios."""
    ratios = []
    for load in loads:
        above = cells[pair, ours, load].throughput
        below = cells[pair, theirs, load].throughput
        ratios.append({block: above[block] / below[block] for block in above.keys() & below.keys()})
    if not ratios:
        return {}
    blocks = set.intersection(*(set(by_block) for by_block in ratios))
    return {b: math.exp(np.mean([math.log(by_block[b]) for by_block in ratios])) for b in blocks}


def _floors(run: Run, cells: Cells, pair: str, alpha: float) -> dict[str, float]:
    """The most that contrasts of equal servers differed from 1 by, 1 or above."""
    floors: dict[str, float] = {}
    for candidate in run.candidates:
        if candidate.twin_of is not None:
            for found in _contrasts(run, cells, pair, candidate.name, candidate.twin_of, alpha):
                far = math.exp(abs(math.log(found.ratio.estimate)))
                floors[found.beside] = max(far, floors.get(found.beside, 1.0))
    return floors


def _judge(
    run: Run,
    contrasts: Sequence[Contrast],
    floors: dict[str, float],
    points: Sequence[ValleyPoint],
) -> tuple[ValleyVerdict, str]:
    empty = [_named(zone) for zone in (FEW, MIDDLE, MANY) if not _in_zone(run, zone)]
    if empty:
        return "not testable with these loads", f"no closed loop of {' or of '.join(empty)} clients"
    blocks = min((found.ratio.blocks for found in contrasts), default=0)
    if len(contrasts) < len(_NEIGHBOURS) or blocks < MIN_BLOCKS:
        return "too few blocks", f"{blocks} blocks measured all zones, and {MIN_BLOCKS} are needed"
    lower = [c.ratio.high < 1 / floors.get(c.beside, 1.0) for c in contrasts]
    said = " and ".join(
        f"{found.ratio.estimate:.3f} ({found.ratio.low:.3f} to {found.ratio.high:.3f}) of that "
        f"with {found.beside}"
        for found in contrasts
    )
    text = f"the throughput ratio at {_named(MIDDLE)} clients is {said}"
    if all(lower):
        return "valley", f"{text}: lower than on both sides"
    higher = [c.beside for c, is_lower in zip(contrasts, lower, strict=True) if not is_lower]
    text += f": not shown to be lower than with {' nor with '.join(higher)}"
    known = [point.ratio for point in points if point.ratio is not None]
    if known and all(ratio.high < 1 for ratio in known):
        text += "; it is behind at every number of clients, which is no valley"
    return "no valley", text


def _named(zone: tuple[int, int | None]) -> str:
    least, most = zone
    return f"{least} or more" if most is None else f"{least} to {most}"
