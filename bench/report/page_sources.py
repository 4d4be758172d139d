"""The page's sections on the source documents: their way of measuring, their claims, their
concurrent test."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from math import exp
from pathlib import Path
from typing import Any

import msgspec

from bench.claims.tables import count_verdicts
from bench.claims.verdicts import Verdict
from bench.legacy.results import Interval, Legacy
from bench.legacy.tables import said_ratio
from bench.report.page_blocks import Block, Listing, Paragraph, Section, Table, foldable
from bench.report.page_results import Drawings, figure
from bench.results.store import ResultsError
from bench.statistics import MIN_BLOCKS

CONCURRENT = "concurrent.csv"
"""The rows of the concurrent test (bench/concurrent/tables.py)."""


def legacy(found: Legacy | None, drawings: Drawings) -> Section:
    """The sources' way of measuring beside an honest one."""
    blocks: list[Block] = []
    title = "Measured as the sources did, and honestly"
    if found is None:
        blocks.append(
            Paragraph(
                "This part was not measured. pdv-bench legacy --output DIR measures it into the "
                "same folder; then pdv-bench report DIR shows it here.",
                "note",
            )
        )
        return Section("legacy", title, blocks)
    facts = found.facts
    blocks.append(
        Paragraph(
            "The sources' window counts the tokens of requests that completed before its end, and "
            "nothing of the others; its reference admits every request at once, so under overload "
            "all of them are half done when the window ends, while the other topology admits a "
            "few and finishes them. Here the same runs are counted both ways, and both topologies "
            f"are run with both admissions. Asked for were {facts.overload:.1f} times the tokens "
            "that these servers can generate in the window on average."
        )
    )
    if "legacy_and_honest" in drawings:
        blocks.append(figure(drawings["legacy_and_honest"]))
    if found.legacy is not None and found.honest is not None:
        over = f"{facts.candidate}, bounded, over {facts.reference}, unbounded"
        blocks.append(
            Table(
                f"The sources' comparison ({over}), from the same runs",
                ["counted", "ratio", "interval", "due to admission", "due to topology", "blocks"],
                [
                    (
                        name,
                        said_ratio(interval),
                        _interval(interval),
                        parts and exp(parts.admission),
                        parts and exp(parts.topology),
                        interval.blocks,
                    )
                    for name, interval, parts in (
                        ("completed requests (legacy)", found.legacy, found.legacy_parts),
                        ("all tokens (honest)", found.honest, found.honest_parts),
                    )
                ],
            )
        )
        blocks.append(
            Paragraph(
                "The two factors multiply to the ratio; each is the mean over both orders in which "
                "admission and topology can be exchanged (Shapley value).",
                "note",
            )
        )
    return Section("legacy", title, blocks)


def _interval(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"none: {found.blocks} of the {MIN_BLOCKS} blocks that it takes"
    return f"{found.low:.3g}–{found.high:.3g}"


def claims(verdicts: Sequence[Verdict]) -> Section:
    """Every numeric claim, by verdict."""
    blocks: list[Block] = [
        Paragraph(
            f"The source documents make {len(verdicts)} claims with figures. Each is held against "
            "the cell of this run that could show it. Reproduced: the same experiment here shows "
            "it. Not reproduced: it shows something else. Artefact: the documents' way of counting "
            "shows the claimed ratio, and all tokens of the very same requests show about 1. Not "
            "testable here: this run cannot tell, and it is said why. On another pair: with other "
            "models than the documents had."
        ),
        Table(
            "Claims by verdict",
            ["verdict", "claims"],
            list(count_verdicts(verdicts).items()),
        ),
    ]
    legacy_texts = dict.fromkeys(v.legacy for v in verdicts if v.legacy)
    blocks += [Paragraph(f"The legacy window: {text}.") for text in legacy_texts]
    for label, count in count_verdicts(verdicts).items():
        blocks.append(
            Table(
                f"Claims: {label}",
                ["claim", "figures", "where", "evidence"],
                [_claim(verdict) for verdict in verdicts if verdict.label == label],
                folded=f"{label[:1].upper()}{label[1:]}: {count}",
            )
        )
    return Section("claims", "The claims of the sources", blocks)


def _claim(verdict: Verdict) -> tuple[str, ...]:
    cited = verdict.claim.cited
    figures = dict.fromkeys(text for citation in cited for text in citation.figures)
    evidence = ["the legacy window above"] if verdict.legacy else []
    if verdict.tested or not verdict.legacy:
        evidence.append(verdict.evidence)
    if verdict.claim.note:
        evidence.append(verdict.claim.note)
    return (
        verdict.claim.says,
        ", ".join(figures),
        ", ".join(citation.at for citation in cited),
        "; ".join(evidence),
    )


def concurrent(folder: Path) -> Section:
    """One prompt, asked more and more often at once; from the rows in the folder, if it has any.

    Raises ResultsError if they cannot be read.
    """
    title = "The concurrent test"
    path = folder / CONCURRENT
    if not path.exists():
        text = (
            "This part was not measured. pdv-bench concurrent --output DIR measures it into the "
            "same folder; then pdv-bench report DIR shows it here."
        )
        return Section("concurrent", title, [Paragraph(text, "note")])
    try:
        with path.open(newline="", encoding="utf-8") as file:
            read = list(csv.DictReader(file))
        facts = path.with_suffix(".json")
        known = msgspec.json.decode(facts.read_bytes()) if facts.exists() else {}
        return Section("concurrent", title, _concurrent(read, known))
    except OSError as error:
        raise ResultsError(f"{error.filename or path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError(f"{path} is not a table of the concurrent test: {error}") from error


def _concurrent(rows: Sequence[Mapping[str, str]], facts: Mapping[str, Any]) -> list[Block]:
    """``facts``: of ``concurrent.json``, as far as they are known."""
    blocks: list[Block] = [
        Paragraph(
            "One prompt, asked so many times at once, on servers with and without chunked prefill "
            "and prefix caching. The targets are the sources' own; their figures were of another "
            "engine and model. Times are medians over repeats, with their range, until all answers "
            "are whole."
        ),
        foldable(
            "The concurrent test",
            "One prompt, asked many times at once",
            [
                *("server", "at once", "repeats", "time, s", "target", "requests/s", "tokens/s"),
                *("first token, ms", "memory, MiB", "what broke"),
            ],
            [_burst(row) for row in rows],
        ),
        Listing([_limit(variant, rows) for variant in dict.fromkeys(r["variant"] for r in rows)]),
    ]
    if facts:
        blocks.append(
            Paragraph(
                f"Prompt: “{facts['prompt']}”, {facts['max_tokens']} tokens, topology "
                f"{facts['topology']}. {facts['chunked_prefill']}",
                "note",
            )
        )
    return blocks


def _limit(variant: str, rows: Sequence[Mapping[str, str]]) -> str:
    mine = [row for row in rows if row["variant"] == variant]
    broken = [row["requests_at_once"] for row in mine if row["breaks"] == "True"]
    if broken:
        return f"{variant}: breaks at {broken[0]} at once."
    most = max(int(row["requests_at_once"]) for row in mine)
    return f"{variant}: does not break up to {most} at once, the most that were tried."


def _burst(row: Mapping[str, str]) -> tuple[object, ...]:
    time = None
    if row["time_s"]:
        time = f"{float(row['time_s']):.3f}"
        if int(row["repeats"]) > 1:
            time += f" ({float(row['time_min_s']):.3f}–{float(row['time_max_s']):.3f})"
    target = f"under {float(row['target_s']):g} s: {row['target']}" if row["target_s"] else None
    memory = row["server_pss_bytes"] or row["server_rss_bytes"]
    broke = row["error"] or f"{row['refused']} refused, {row['failed']} failed"
    return (
        row["variant"],
        int(row["requests_at_once"]),
        int(row["repeats"]),
        time,
        target,
        *(float(row[name]) if row[name] else None for name in _RATES),
        round(int(memory) / 2**20) if memory else None,
        broke if row["breaks"] == "True" or int(row["refused"]) + int(row["failed"]) else None,
    )


_RATES = ("requests_per_s", "tokens_per_s", "ttft_ms")
