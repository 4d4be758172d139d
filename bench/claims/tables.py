"""``claims.csv`` and ``claims.md``."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.claims.records import SCHEMA_VERSION, Citation
from bench.claims.verdicts import JUDGEMENTS, Finding, Verdict
from bench.results.store import ResultsError

CSV, MARKDOWN = "claims.csv", "claims.md"

_COLUMNS = (
    *("schema_version", "id", "says", "verdict", "on_another_pair", "pairs", "cells"),
    *("value", "low", "high", "claimed_low", "claimed_high", "evidence", "cited", "note"),
)
_MEANINGS = {
    "reproduced": "the same experiment here shows what is claimed",
    "not reproduced": "the same experiment here shows something else",
    "artefact": "the way of counting that the documents used shows such a ratio here, and all "
    "tokens of the very same requests show no such gain",
    "not testable here": "this run cannot tell, and it is said why",
}


def write_claims(verdicts: Sequence[Verdict], folder: Path) -> None:
    """Writes both. Raises ResultsError."""
    try:
        with (folder / CSV).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(_COLUMNS)
            writer.writerows(_row(verdict) for verdict in verdicts)
        (folder / MARKDOWN).write_text(as_markdown(verdicts), encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"{error.filename}: {error.strerror}") from error


def _row(verdict: Verdict) -> list[object]:
    tested = verdict.tested
    one: Finding | None = tested[0] if len(tested) == 1 else None
    low, high = getattr(verdict.claim.judge, "ratio", (None, None))
    return [
        SCHEMA_VERSION,
        verdict.claim.id,
        verdict.claim.says,
        verdict.judgement,
        verdict.other_pair,
        _joined(found.pair for found in tested),
        _joined(found.place for found in tested),
        None if one is None else one.value,
        None if one is None else one.low,
        None if one is None else one.high,
        low,
        high,
        _evidence(verdict),
        _joined(citation.at for citation in verdict.claim.cited),
        verdict.claim.note,
    ]


def _evidence(verdict: Verdict) -> str:
    if verdict.legacy is None:
        return verdict.evidence
    return f"{verdict.legacy}; {verdict.evidence}" if verdict.tested else verdict.legacy


def _joined(texts: Iterator[str | None]) -> str:
    return "; ".join(dict.fromkeys(text for text in texts if text))


def count_verdicts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How many there are of each, by label, in the order of :data:`JUDGEMENTS`."""
    counted = Counter(verdict.label for verdict in verdicts)
    order: dict[str, int] = {judgement: place for place, judgement in enumerate(JUDGEMENTS)}
    return dict(
        sorted(counted.items(), key=lambda item: (order[item[0].partition(" (")[0]], item[0]))
    )


def as_markdown(verdicts: Sequence[Verdict]) -> str:
    """Counts first, then the claims of each document in the order of its lines."""
    lines = [
        "# The claims of the source documents",
        "",
        f"{len(verdicts)} claims with figures, each judged by this run:",
        "",
        "| verdict | claims |",
        "| --- | ---: |",
        *(f"| {label} | {count} |" for label, count in count_verdicts(verdicts).items()),
        "",
        *(f"- *{name}*: {meaning}." for name, meaning in _MEANINGS.items()),
        "- *on another pair*: with other models than the documents had, so that the verdict is on "
        "what is claimed of the two architectures, not on their numbers.",
        "",
        *_legacy(verdicts),
        "Intervals are in brackets. Ratios are of the first over the second: 1.15 is 15 % more. "
        "What is in italics comes from the documents themselves, or from an audit of the code and "
        "the tables behind them (commits ffc2e8e, 643148c and 4d537ac of pdverify).",
    ]
    documents = dict.fromkeys(c.document for v in verdicts for c in v.claim.cited)
    for document in sorted(documents):
        lines += ["", f"## {document}", "", *_table(document, verdicts)]
    return "\n".join(lines) + "\n"


def _legacy(verdicts: Sequence[Verdict]) -> Iterator[str]:
    for text in dict.fromkeys(verdict.legacy for verdict in verdicts if verdict.legacy):
        yield f"**The legacy window**, which makes the artefacts: {text}."
        yield ""


def _table(document: str, verdicts: Sequence[Verdict]) -> Iterator[str]:
    yield "| line | claim | figures | verdict | why |"
    yield "| ---: | --- | --- | --- | --- |"
    entries = []
    for verdict in verdicts:
        here = [one for one in verdict.claim.cited if one.document == document]
        if here:
            entries.append((min(one.line for one in here), verdict, here))
    for _, verdict, here in sorted(entries, key=lambda entry: entry[0]):
        numbers = ", ".join(dict.fromkeys(str(one.line) for one in here))
        yield _line(numbers, verdict, here, _why(document, verdict))


def _why(document: str, verdict: Verdict) -> str:
    """The evidence where a claim is made first, later only where that is."""
    first = min(verdict.claim.cited, key=lambda one: (one.document, one.line))
    if first.document != document:
        return f"as {first.at}"
    parts = ["the legacy window above"] if verdict.legacy else []
    if verdict.tested or not verdict.legacy:
        parts.append(verdict.evidence)
    note, text = verdict.claim.note, "; ".join(parts)
    return f"{text}. *{_begun(note)}.*" if note else f"{text}."


def _begun(text: str) -> str:
    return text[:1].upper() + text[1:]


def _line(numbers: str, verdict: Verdict, here: Sequence[Citation], why: str) -> str:
    figures = ", ".join(dict.fromkeys(figure for one in here for figure in one.figures))
    cells = (numbers, verdict.claim.says, figures, verdict.label, why)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
