"""What handing work between processes costs, in every topology: ``python -m bench.handoff``.

All topologies serve the shipped pair at the same time, but only one is asked at a time. Every round
gives each of them, in rotated order, the same fresh prompts, cut from the held-out files, greedily
and with so many requests open at once; each round twice, once to be timed and once with timelines,
which cost some time themselves. Prefix caching is off. All must give the same ids.

Per edge: messages, bytes, and p50 and p99 of what each message or handoff cost (``info.handoffs``).
A message that comes while its receiver computes waits in the socket; how much of its ``wire`` that
was is shown beside it. Orchestration share and states come from the requests' timelines
(docs/protocol.md). Tokens/s is output tokens / wall time, prefill included; median and range over
the rounds. The servers run with ``--trace``; the files stay in the output folder, and are what
bench/handoff_gap.py takes the gap to the reference topology apart with. The first round is warm-up
and is not counted.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from bench.arguments import launch_options, named, whole_numbers
from bench.handoff_gap import Wall, fit_costs, gap
from bench.handoff_tables import (
    STATES,
    Cell,
    edge_rows,
    edge_table,
    gap_table,
    topology_rows,
    topology_table,
    write_csv,
)
from bench.quick import held_out_prompts
from bench.trace_reading import Traced, read_trace
from pdv_mp import LLM, SamplingParams
from pdv_mp.client.client import Client, Completion
from pdv_mp.workers.handoffs import between

TOPOLOGIES = ("unified", "pd", "pdv", "baseline")
"""The first that is measured is the reference."""

Prompts = Sequence[Sequence[int]]
Ids = list[list[int]]


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
                    **{part: value / 1000 for part, value in parts.items()},
                }
            )
    return rows


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option(
    "--concurrency", default="1,8", show_default=True, metavar="LIST", callback=whole_numbers
)
@click.option(
    "--topology",
    "names",
    default=",".join(TOPOLOGIES),
    show_default=True,
    metavar="LIST",
    help="the first one is the reference; pdv+kv-handoff=copy is pdv with that option",
)
@click.option("--requests", default=2, show_default=True, type=click.IntRange(1), help="per client")
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(2))
@click.option("--prompt-length", default=128, show_default=True, type=click.IntRange(1))
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    callback=launch_options,
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
            topology, own = named(name)
            given: dict[str, Any] = {"enable_prefix_caching": False, "trace": path}
            llm = stack.enter_context(LLM(topology=topology, **given, **options, **own))
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
