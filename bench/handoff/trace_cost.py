"""What ``--trace`` costs: the same server without it, without it again, and with it.

The second server without it says what two equal servers differ by.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.handoff.cells import Cells, ratio_fields, ratio_of
from bench.handoff.tables import Rows, markdown, ratio_text
from bench.handoff.variants import Variant
from bench.statistics import ALPHA, corrected

AGAIN, TRACED = " (again)", " (traced)"


def trace_variants(bases: Sequence[Variant], output: Path) -> list[Variant]:
    """Three of each; the traces are written to ``output``."""
    found = []
    for base in bases:
        again = Variant(base.name + AGAIN, base.topology, base.options)
        trace = {"trace": str(output / f"trace-{base.name}.json")}
        traced = Variant(base.name + TRACED, base.topology, {**base.options, **trace})
        found += [base, again, traced]
    return found


def cost_rows(bases: Sequence[Variant], cells: Cells) -> Rows:
    """By variant and concurrency: throughput of both other servers over that of the first."""
    concurrencies = list(dict.fromkeys(concurrency for _, concurrency in cells))
    alpha = corrected(ALPHA, 2 * len(bases) * len(concurrencies))
    rows = []
    for base in bases:
        for concurrency in concurrencies:
            first = cells[base.name, concurrency]
            row: dict[str, Any] = {"topology": base.name, "concurrency": concurrency}
            row["blocks"] = len(first.timed)
            for column, name in (("again", AGAIN), ("traced", TRACED)):
                other = cells[base.name + name, concurrency]
                row |= ratio_fields(ratio_of(other, first, alpha), column)
            rows.append(row)
    return rows


def cost_table(rows: Rows) -> str:
    """Both ratios; what ``again`` differs from 1 by is noise."""
    head = ("topology", "C", "blocks", "again ÷ off", "on ÷ off")
    names = ("again", "traced")
    return markdown(
        head,
        (
            (
                *(row["topology"], row["concurrency"], row["blocks"]),
                *(ratio_text(row, name) for name in names),
            )
            for row in rows
        ),
    )
