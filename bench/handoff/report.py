"""The standard run: every variant's throughput, edges, processes, and gap to the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.handoff.cells import Cells
from bench.handoff.codec import codec_rows, codec_table
from bench.handoff.gap import Wall, fit_costs, gap
from bench.handoff.kv_prices import price_rows, price_table, wrong_counts
from bench.handoff.rounds import Load, measure
from bench.handoff.tables import (
    Rows,
    edge_rows,
    edge_table,
    gap_table,
    process_rows,
    process_table,
    topology_rows,
    topology_table,
    write_csv,
)
from bench.handoff.trace_reading import Traced, read_trace
from bench.handoff.variants import Variant
from bench.handoff.waits import wait_rows, wait_table


def walls(cells: Cells, traces: Mapping[str, Traced]) -> dict[tuple[str, int], Wall]:
    """Of each cell, the wall time of its timed rounds by what happened in it."""
    found = {}
    for (name, concurrency), cell in cells.items():
        wall = found[name, concurrency] = Wall()
        for timed in cell.timed:
            wall.add(timed.window, timed.tokens, traces[name].batches, traces[name].messages)
    return found


def gap_rows(names: Sequence[str], cells: Cells, traces: Mapping[str, Traced]) -> Rows:
    """The gap of each variant to the first, in µs per token, by part."""
    reference = names[0]
    found = walls(cells, traces)
    timed = [
        one.window for (name, _), cell in cells.items() if name == reference for one in cell.timed
    ]
    costs = fit_costs(
        batch
        for batch in traces[reference].batches
        if any(start <= batch.start_ns and batch.end_ns <= end for start, end in timed)
    )
    rows = []
    for (name, concurrency), other in found.items():
        if name == reference:
            continue
        one = found[reference, concurrency]
        parts = gap(one, other, costs)
        row: dict[str, Any] = {"topology": name, "reference": reference, "concurrency": concurrency}
        row["gap_us_per_token"] = (other.ns_per_token - one.ns_per_token) / 1000
        rows.append(row | {part: value / 1000 for part, value in parts.items()})
    return rows


def run(variants: Sequence[Variant], load: Load, output: Path) -> list[str]:
    """Measure, print and write everything. Returns what was wrong with it, in words.

    Raises what :func:`~bench.handoff.rounds.measure` does, and HandoffError if it took so long
    that traces have lost their oldest records.
    """
    from bench.handoff.figure import draw  # a second of imports, which a refusal need not wait for

    files = {variant.name: output / f"trace-{variant.name}.json" for variant in variants}
    measured = measure(variants, load, {name: {"trace": path} for name, path in files.items()})
    cells, names = measured.cells, list(files)
    tables = {"topologies": topology_rows(cells), "edges": edge_rows(cells), "codec": codec_rows()}
    print(topology_table(tables["topologies"]))
    print(f"\nµs, p50 / p99; p50 within 2 %:\n\n{edge_table(tables['edges'])}")
    print(f"\nEncoding and decoding by themselves, µs:\n\n{codec_table(tables['codec'])}")
    tables["processes"] = process_rows(cells)
    print(f"\nPer token, by process:\n\n{process_table(tables['processes'])}")
    wrong = []
    prices = price_rows(variants, tables["edges"], cells, measured.configurations)
    if prices:
        tables["kv_prices"], wrong = prices, wrong_counts(prices)
        print(f"\nHanding on KV:\n\n{price_table(prices)}")
    waits = wait_rows(variants, cells)
    if waits:
        tables["waits"] = waits
        print(f"\nWaiting for messages, per token:\n\n{wait_table(waits)}")
    if len(names) > 1:
        traces = {name: read_trace(path) for name, path in files.items()}
        tables["gaps"] = gap_rows(names, cells, traces)
        print(f"\nµs per token:\n\n{gap_table(tables['gaps'])}")
    for name, rows in tables.items():
        write_csv(output / f"{name}.csv", rows)
    plain = [row for row in tables["topologies"] if "+" not in row["topology"]]
    draw(plain or tables["topologies"], output / "token_time.png")
    return wrong + measured.wrong
