"""The page's first sections: what to run, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from bench.report.page_blocks import (
    Block,
    Heading,
    Lead,
    Listing,
    Paragraph,
    Section,
    Table,
    foldable,
)
from bench.report.page_text import counted, effect_text, estimate_text, load_named, ratio_text
from bench.report.recommendation import load_text
from bench.report.summaries import Analysis
from bench.statistics import MIN_BLOCKS, POWER
from pdv_mp.config import ConfigError
from pdv_mp.topology import topology


def recommendation(analysis: Analysis) -> Section:
    """What to run, and what must be known before anything is believed."""
    run = analysis.run
    blocks: list[Block] = []
    if analysis.end is None:
        blocks.append(
            Paragraph("This run is unfinished: what follows is of what there is.", "warning")
        )
    for found in analysis.recommendations:
        if len(run.pairs) > 1:
            blocks.append(Heading(f"With the pair {found.pair}"))
        blocks.append(Lead(found.sentences))
    if analysis.warnings:
        blocks += [Heading("To know first"), Listing(analysis.warnings)]
    blocks += [
        foldable(
            "What to run under each load",
            "What to run under each load; in brackets the intervals",
            ["load", "pair", "run", "output tokens/s", "next best", "times the next best", "shown"],
            [
                (
                    load_named(run, choice.load),
                    found.pair,
                    choice.candidate,
                    estimate_text(choice.throughput),
                    choice.runner_up,
                    ratio_text(choice.ratio),
                    "ahead" if choice.shown else "no difference" if choice.candidate else None,
                )
                for found in analysis.recommendations
                for choice in found.choices
            ],
        ),
        Heading("What was compared"),
        Paragraph(
            "A small draft model proposes tokens, and the large one, the verifier, checks several "
            "of them in one step: the text is the large model's own. A topology says which worker "
            "process does which part: prefill reads the prompt, draft proposes, verify checks. All "
            "topologies run the same code and give the same tokens."
        ),
        Table(
            "The candidates",
            ["candidate", "topology", "workers", "options", "what for"],
            [
                (
                    candidate.name,
                    candidate.topology,
                    _workers(candidate.topology),
                    ", ".join(f"{name}={value}" for name, value in candidate.options.items()),
                    f"a second server of {candidate.twin_of}: their difference is noise"
                    if candidate.twin_of
                    else "reference of the ratios"
                    if candidate.name == run.reference
                    else "compared",
                )
                for candidate in run.candidates
            ],
        ),
    ]
    return Section("recommendation", "What to run on this machine", blocks)


def _workers(name: str) -> str | None:
    """The processes of a topology and what they do; None for one that is not known here."""
    try:
        row = topology(name)
    except ConfigError:
        return None
    texts = [" + ".join(sorted(worker.stages, key=_STAGES.index)) for worker in row.workers]
    return " | ".join(texts) + (f", {row.replicas} times" if row.replicas > 1 else "")


_STAGES = ("prefill", "draft", "verify")


def sureness(analysis: Analysis) -> Section:
    """How many blocks, how large the noise, and what could have been shown."""
    run = analysis.run
    stopped = f" It stopped because {analysis.end.stopped}." if analysis.end is not None else ""
    blocks: list[Block] = [
        Paragraph(
            f"{counted(analysis.blocks, 'block')} of {run.blocks} planned ones were begun."
            f"{stopped} A block measures every candidate under every load once, in an order that "
            "rotates, so a slow minute of the machine strikes all of them. Ratios are taken block "
            f"by block. With {1 - analysis.alpha:.0%} probability all intervals of ratios in this "
            f"report hold at once (each has an error probability of "
            f"{analysis.comparisons_alpha:.2g}). Fewer than {MIN_BLOCKS} blocks are not compared."
        )
    ]
    if analysis.noise:
        blocks += [
            Paragraph(
                "The noise floor is what two equal servers differ by. A ratio counts as a "
                "difference only if its whole interval is further from 1 than that. The second "
                "server is in the map of all comparisons and in the tables only."
            ),
            foldable(
                "The noise floor under each load",
                "Two equal servers (A/A): the noise floor under each load",
                [
                    "load",
                    "pair",
                    "servers",
                    "blocks",
                    "ratio of tokens/s",
                    "noise floor",
                    "the interval holds 1",
                ],
                [
                    (
                        load_named(analysis.run, found.load),
                        found.pair,
                        f"{found.twin} ÷ {found.candidate}",
                        found.blocks,
                        ratio_text(found.ratio),
                        effect_text(found.floor),
                        found.holds,
                    )
                    for found in analysis.noise
                ],
            ),
        ]
    names = [c.name for c in run.candidates if c.twin_of is None]
    couples = list(combinations(names, 2))
    if couples:
        blocks.append(
            foldable(
                "The smallest difference that each cell could have shown",
                f"The smallest difference that each cell could have shown ({POWER:.0%} power)",
                ["load", "pair", "blocks", *(f"{one} and {other}" for one, other in couples)],
                list(_smallest(analysis, couples)),
            )
        )
    return Section("sureness", "How sure is it", blocks)


def _smallest(
    analysis: Analysis, couples: Sequence[tuple[str, str]]
) -> Iterator[tuple[object, ...]]:
    for pair in analysis.run.pairs:
        for load in analysis.run.loads:
            found = [analysis.comparison(pair.name, load.name, a, b) for a, b in couples]
            reach = sorted({comparison.blocks for comparison in found})
            yield (
                load_text(load),
                pair.name,
                "–".join(map(str, dict.fromkeys((reach[0], reach[-1])))),
                *(effect_text(comparison.smallest_effect) for comparison in found),
            )
