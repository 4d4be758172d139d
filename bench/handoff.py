"""What handing work between processes costs, in every topology: ``python -m bench.handoff``.

All topologies serve the shipped pair at the same time, but only one is asked at a time. Every round
gives each of them, in rotated order, the same fresh prompts, cut from the held-out files, greedily
and with so many requests open at once; each round twice, once to be timed and once with timelines,
which cost some time themselves. Prefix caching is off. All must give the same ids.

Per edge: messages, bytes, and p50 and p99 of what each message or handoff cost (``info.handoffs``).
Orchestration share and states come from the requests' timelines (docs/protocol.md). Tokens/s is
output tokens / wall time, prefill included; median and range over the rounds. The servers run with
``--trace``; the files stay in the output folder, and say what bench/handoff_gap.py takes the gap to
the reference topology apart with. The first round is warm-up and is not counted.
"""

from __future__ import annotations

import csv
import itertools
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from bench.handoff_gap import PARTS as GAP_PARTS
from bench.handoff_gap import Wall, fit_costs, gap
from bench.quick import held_out_prompts
from bench.trace_reading import Traced, read_trace
from pdv_mp import LLM, SamplingParams
from pdv_mp.client import Client, Completion
from pdv_mp.handoffs import PARTS, between, combine, report
from pdv_mp.timeline import orchestration_share

TOPOLOGIES = ("unified", "pd", "pdv", "baseline")
"""The first that is measured is the reference."""

STATES = ("prefill", "draft", "verify", *PARTS, "text", "waiting")
"""Where a request's time goes: three stages' compute, the parts of a handoff, the front's text
work, and all other waiting."""

Prompts = Sequence[Sequence[int]]
Ids = list[list[int]]


@dataclass
class Cell:
    """One topology at one concurrency, over all rounds."""

    rates: list[float] = field(default_factory=list)
    windows: list[tuple[tuple[int, int], int]] = field(default_factory=list)
    handoffs: list[dict[str, Any]] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    state_ns: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    tokens: int = 0

    def add_timed(self, window: tuple[int, int], tokens: int, handoffs: dict[str, Any]) -> None:
        """A round without timelines."""
        self.rates.append(tokens * 1e9 / (window[1] - window[0]))
        self.windows.append((window, tokens))
        self.handoffs.append(handoffs)

    def add_timelines(self, completions: Iterable[Completion]) -> None:
        """A round with timelines."""
        for completion in completions:
            if completion.timeline is None:
                raise RuntimeError("a request ended without its timeline")
            self.shares.append(orchestration_share(completion.timeline))
            self.tokens += len(completion.ids)
            for name, entry in completion.timeline["states"].items():
                self.state_ns[state_class(name)] += entry["ns"]

    @property
    def edges(self) -> dict[str, Any]:
        """``info.handoffs`` of all timed rounds."""
        return report(combine((found, 1) for found in self.handoffs))

    def us_per_token(self, state: str) -> float:
        """A request's time in a class of states, per token."""
        return self.state_ns[state] / self.tokens / 1000


def state_class(name: str) -> str:
    """The one of :data:`STATES` that a timeline's state counts to."""
    where, _, what = name.rpartition(".")
    if what == "compute":
        return where
    if what == "outbox":
        return "text"
    return what if what in STATES else "waiting"


def serve(
    client: Client, prompts: Prompts, concurrency: int, tokens: int, timeline: bool
) -> list[Completion]:
    """Complete all prompts, never more than ``concurrency`` at once."""
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    numbers: dict[str, int] = {}
    waiting = iter(enumerate(prompts))
    found: dict[int, Completion] = {}

    def submit(count: int) -> None:
        for number, prompt in itertools.islice(waiting, count):
            numbers[client.submit(list(prompt), params, timeline=timeline)] = number

    submit(concurrency)
    while len(found) < len(prompts):
        for done in client.results():
            if not isinstance(done, Completion):
                raise done
            found[numbers[done.id]] = done
            submit(1)
    return [found[number] for number in range(len(prompts))]


class Bench:
    """Servers of several topologies, and what was measured on them."""

    def __init__(self, clients: dict[str, Client], requests: int, tokens: int) -> None:
        self._clients = clients
        self._requests = requests
        self._tokens = tokens
        self.cells: dict[tuple[str, int], Cell] = {}
        self.differing = 0
        self.compared = 0

    def run(self, prompts: Prompts, concurrencies: Sequence[int], rounds: int) -> None:
        """All rounds. Raises RuntimeError if a topology does not make as many tokens as asked."""
        names = list(self._clients)
        used = 0
        for turn in range(rounds + 1):
            for concurrency in concurrencies:
                count = concurrency * self._requests
                chosen = [prompts[(used + i) % len(prompts)] for i in range(count)]
                used += count
                first: Ids | None = None
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    for ids in self._measure(name, chosen, concurrency, turn > 0):
                        first = ids if first is None else first
                        self.compared += len(ids)
                        self.differing += sum(a != b for a, b in zip(first, ids, strict=True))
            print(f"round {turn} of {rounds} done", file=sys.stderr)

    def _measure(self, name: str, prompts: Prompts, concurrency: int, counts: bool) -> list[Ids]:
        client = self._clients[name]
        before = client.info()["handoffs"]
        started = time.monotonic_ns()
        timed = serve(client, prompts, concurrency, self._tokens, timeline=False)
        window = (started, time.monotonic_ns())
        after = client.info()["handoffs"]
        followed = serve(client, prompts, concurrency, self._tokens, timeline=True)
        made = sum(len(done.ids) for done in timed)
        if made != len(prompts) * self._tokens:
            raise RuntimeError(f"{name} made {made} tokens, not {len(prompts) * self._tokens}")
        if counts:
            cell = self.cells.setdefault((name, concurrency), Cell())
            cell.add_timed(window, made, between(before, after))
            cell.add_timelines(followed)
        return [[done.ids for done in passed] for passed in (timed, followed)]


def walls(cells: dict[tuple[str, int], Cell], traces: dict[str, Traced]) -> dict[Any, Wall]:
    """Of each cell, the wall time of its timed rounds by what happened in it."""
    found = {}
    for (name, concurrency), cell in cells.items():
        wall = found[name, concurrency] = Wall()
        for window, tokens in cell.windows:
            wall.add(window, tokens, traces[name].batches, traces[name].messages)
    return found


def gaps(
    names: Sequence[str],
    concurrencies: Sequence[int],
    found: dict[Any, Wall],
    traces: dict[str, Traced],
) -> list[dict[str, Any]]:
    """The gap of each topology to the first, in µs per token, by part."""
    reference = names[0]
    costs = fit_costs(traces[reference].batches)
    rows = []
    for concurrency in concurrencies:
        one = found[reference, concurrency]
        for name in names[1:]:
            other = found[name, concurrency]
            parts = gap(one, other, costs)
            total = (other.ns_per_token - one.ns_per_token) / 1000
            rows.append(
                {
                    "topology": name,
                    "reference": reference,
                    "concurrency": concurrency,
                    "gap_us_per_token": total,
                    **{part: parts[part] / 1000 for part in GAP_PARTS},
                }
            )
    return rows


def edge_rows(cells: dict[tuple[str, int], Cell]) -> list[dict[str, Any]]:
    """By topology, concurrency and edge: counts, and p50 and p99 of each part in µs."""
    rows = []
    for (name, concurrency), cell in cells.items():
        for edge, found in cell.edges.items():
            row: dict[str, Any] = {"topology": name, "concurrency": concurrency, "edge": edge}
            row.update({key: found[key] for key in ("messages", "bytes", "local")})
            for part in PARTS:
                known = found["parts"].get(part, {})
                for number in ("n", "mean_us", "p50_us", "p99_us"):
                    row[f"{part}_{number}"] = known.get(number)
            rows.append(row)
    return rows


def topology_rows(cells: dict[tuple[str, int], Cell]) -> list[dict[str, Any]]:
    """By topology and concurrency: tokens/s, orchestration share, µs per token by state."""
    return [
        {
            "topology": name,
            "concurrency": concurrency,
            "tokens_per_s": statistics.median(cell.rates),
            "tokens_per_s_min": min(cell.rates),
            "tokens_per_s_max": max(cell.rates),
            "orchestration_share": statistics.mean(cell.shares),
            **{f"{state}_us_per_token": cell.us_per_token(state) for state in STATES},
        }
        for (name, concurrency), cell in cells.items()
    ]


def edge_table(rows: Iterable[dict[str, Any]]) -> str:
    """A Markdown table; a handoff within one process has no message."""
    lines = [
        f"| topology | C | edge | messages (local) | bytes | {' | '.join(PARTS)} |",
        "|" + " --- |" * (5 + len(PARTS)),
    ]
    for row in rows:
        parts = [
            "–" if row[f"{p}_n"] is None else f"{row[f'{p}_p50_us']:.0f} / {row[f'{p}_p99_us']:.0f}"
            for p in PARTS
        ]
        counts = f"{row['messages']} ({row['local']}) | {row['bytes']}"
        place = f"{row['topology']} | {row['concurrency']} | {row['edge']}"
        lines.append(f"| {place} | {counts} | {' | '.join(parts)} |")
    return "\n".join(lines)


def topology_table(rows: Iterable[dict[str, Any]]) -> str:
    """A Markdown table of throughput and orchestration share."""
    lines = [
        "| topology | C | tokens/s: median (range) | orchestration share |",
        "|" + " --- |" * 4,
    ]
    for row in rows:
        low, high = row["tokens_per_s_min"], row["tokens_per_s_max"]
        rate = f"{row['tokens_per_s']:.0f} ({low:.0f}–{high:.0f})"
        share = f"{row['orchestration_share']:.1%}"
        lines.append(f"| {row['topology']} | {row['concurrency']} | {rate} | {share} |")
    return "\n".join(lines)


def gap_table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table; µs per token."""
    lines = [
        f"| against {rows[0]['reference']} | C | gap | {' | '.join(GAP_PARTS)} |",
        "|" + " --- |" * (3 + len(GAP_PARTS)),
    ]
    for row in rows:
        parts = " | ".join(f"{row[part]:+.0f}" for part in GAP_PARTS)
        place = f"{row['topology']} | {row['concurrency']}"
        lines.append(f"| {place} | {row['gap_us_per_token']:+.0f} | {parts} |")
    return "\n".join(lines)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One line for each row, under the names of the first row's fields."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _whole_numbers(context: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers") from error
    if min(found) < 1:
        raise click.BadParameter(f"{text!r} has a number below 1")
    return found


def _options(context: click.Context, parameter: click.Parameter, texts: Sequence[str]) -> Any:
    found = dict(text.partition("=")[::2] for text in texts)
    if not all(found.values()):
        raise click.BadParameter("give NAME=VALUE")
    return found


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option(
    "--concurrency", default="1,8", show_default=True, metavar="LIST", callback=_whole_numbers
)
@click.option(
    "--topology",
    "names",
    default=",".join(TOPOLOGIES),
    show_default=True,
    metavar="LIST",
    help="the first one is the reference",
)
@click.option("--requests", default=2, show_default=True, type=click.IntRange(1), help="per client")
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(2))
@click.option("--prompt-length", default=128, show_default=True, type=click.IntRange(1))
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_options,
    help="an option of pdv-launch for all servers; may be given several times",
)
@click.option(
    "--output",
    default=Path("build/handoff"),
    show_default=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
)
def main(
    rounds: int,
    concurrency: list[int],
    names: str,
    requests: int,
    tokens: int,
    prompt_length: int,
    options: dict[str, str],
    output: Path,
) -> None:
    topologies = names.split(",")
    output.mkdir(parents=True, exist_ok=True)
    files = {name: output / f"trace-{name}.json" for name in topologies}
    with ExitStack() as stack:
        clients = {}
        for name, path in files.items():
            given: dict[str, Any] = {"enable_prefix_caching": False, "trace": path, **options}
            llm = stack.enter_context(LLM(topology=name, **given))
            clients[name] = stack.enter_context(Client(llm.ipc))
        bench = Bench(clients, requests, tokens)
        bench.run(held_out_prompts(prompt_length), concurrency, rounds)
    traces = {name: read_trace(path) for name, path in files.items()}
    cells = {(name, c): bench.cells[name, c] for c in concurrency for name in topologies}
    tables = {"edges": edge_rows(cells), "topologies": topology_rows(cells)}
    print(topology_table(tables["topologies"]))
    print(f"\nµs, p50 / p99; p50 within 2 %:\n\n{edge_table(tables['edges'])}")
    if len(topologies) > 1:
        tables["gaps"] = gaps(topologies, concurrency, walls(cells, traces), traces)
        print(f"\nµs per token:\n\n{gap_table(tables['gaps'])}")
    for name, rows in tables.items():
        write_csv(output / f"{name}.csv", rows)
    from bench.handoff_figure import draw

    draw(tables["topologies"], STATES, output / "token_time.png")
    print(f"\n{output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
    if bench.differing:
        sys.exit(f"{bench.differing} of {bench.compared} outputs differ from another topology's")


if __name__ == "__main__":
    main()
