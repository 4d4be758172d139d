"""Which topology is faster, and why: ``python -m bench.topologies``.

A server of each topology, and a second one of the reference, serve the shipped pair. All of them
are started once and are idle, which costs nothing, while one is measured. A block measures each of
them at each concurrency, in rotated order, under the same closed loop (bench/closed_loop.py): C
clients, prompts cut from the held-out files, greedy, prefix caching off.

Tokens/s are all tokens that arrived in the window / its length. Each topology is compared with the
reference by the blocks' log ratios (bench/statistics.py): 95 % intervals, corrected so that all of
the table hold at once. Ahead or behind is one whose interval is further from 1 than what the two
servers of the reference differ by. A baseline worker has one request at a time: with more clients
than workers the others wait in the front, which is part of what is compared.

The first block is warm-up. It is run with timelines, which cost a little, and its rates do not
count: the second table is made of it, the share of the clients' time in each group of states.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import click
import psutil

from bench.arguments import launch_options, named, seconds, whole_numbers
from bench.closed_loop import ClosedLoop, LoadError, Window, Workload
from bench.handoff_tables import write_csv
from bench.quick import held_out_prompts
from bench.servers import Server
from bench.statistics import ALPHA, MIN_BLOCKS, SequentialPlan
from bench.topologies_table import (
    SCHEMA_VERSION,
    Cell,
    compare,
    measured,
    rate_table,
    time_table,
)
from pdv_mp.client.client import ServerError, ServerUnreachable
from pdv_mp.client.llm import LaunchError

TOPOLOGIES = ("unified", "baseline", "pd", "pdv")
"""The first that is measured is the reference."""

AGAIN = " (again)"
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


class Results:
    """Raw results: each cell and each request is a JSON line as soon as it is known."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"schema_version": SCHEMA_VERSION, **facts}, indent=2, default=str)
        (folder / "run.json").write_text(text + "\n", encoding="utf-8")
        self._cells = (folder / "cells.jsonl").open("w", encoding="utf-8")
        self._requests = (folder / "requests.jsonl").open("w", encoding="utf-8")

    def add(self, cell: Cell, window: Window | None) -> None:
        """One cell, and the requests of its window if there was one."""
        place = {
            "block": cell.block,
            "topology": cell.topology,
            "concurrency": cell.concurrency,
            "window_ns": round(cell.seconds * 1e9),
        }
        if window is not None:
            for row in window.rows():
                _write(self._requests, {**place, **row})
        _write(self._cells, cell.row())

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *exception: object) -> None:
        self._cells.close()
        self._requests.close()


def _write(file: IO[str], row: dict[str, Any]) -> None:
    file.write(json.dumps(row) + "\n")
    file.flush()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured. Times in seconds; ``precision``: stop once all ratios are known that well;
    ``again``: the name of the reference's second server."""

    concurrencies: Sequence[int]
    workload: Workload
    sequence: SequentialPlan
    ramp: float
    seconds: float
    budget: float
    precision: float | None
    again: str | None


class Comparison:
    """Servers beside each other, and what was measured on them."""

    def __init__(self, servers: dict[str, Server], plan: Plan, results: Results) -> None:
        self._servers = servers
        self._plan = plan
        self._results = results
        self._started = time.monotonic()
        self.cells: list[Cell] = []
        self.blocks = 0
        self.stopped = ""
        self._alpha: float | None = None

    def run(self) -> None:
        """Block after block until all are done, the ratios are known well enough or the time is
        over. Server failures are cells; raises KeyboardInterrupt after Ctrl-C."""
        longest = 0.0
        for block in range(self._plan.sequence.blocks + 1):
            began = time.monotonic()
            if block and began - self._started + longest > self._plan.budget:
                self.stopped = f"the budget of {self._plan.budget:g} s was spent"
                return
            for concurrency in self._plan.concurrencies:
                self._round(block, concurrency)
            longest = max(longest, time.monotonic() - began)
            self.blocks = block
            elapsed = time.monotonic() - self._started
            print(
                f"block {block} of {self._plan.sequence.blocks} done after {elapsed:.0f} s",
                file=sys.stderr,
            )
            if self._is_known_well():
                self.stopped = "all ratios were known well enough"
                return

    def rows(self) -> list[dict[str, Any]]:
        """The comparison of what has been measured."""
        looked = self._plan.precision is not None
        alpha = self._alpha
        if alpha is None:
            alpha = self._plan.sequence.alpha_at_end(self.blocks, looked)
        return self._compare(alpha)

    def _compare(self, alpha: float) -> list[dict[str, Any]]:
        names, plan = list(self._servers), self._plan
        return compare(self.cells, names, plan.concurrencies, alpha, plan.again)

    def _is_known_well(self) -> bool:
        plan, blocks = self._plan, self.blocks
        if plan.precision is None or blocks not in plan.sequence.looks[:-1]:
            return False
        alpha = plan.sequence.alpha_at(blocks)
        reference = next(iter(self._servers))
        rows = [row for row in self._compare(alpha) if row["topology"] != reference]
        widest = (1 + plan.precision) ** 2
        if any(not row["ratio"] or row["ratio_high"] > row["ratio_low"] * widest for row in rows):
            return False
        self._alpha = alpha
        return True

    def _round(self, block: int, concurrency: int) -> None:
        names = list(self._servers)
        turn = (block + list(self._plan.concurrencies).index(concurrency)) % len(names)
        for order, name in enumerate(names[turn:] + names[:turn]):
            place = {"block": block, "order": order, "topology": name, "concurrency": concurrency}
            cell, window = self._measure(name, {**place, "followed": not block})
            self.cells.append(cell)
            self._results.add(cell, window)

    def _measure(self, name: str, place: dict[str, Any]) -> tuple[Cell, Window | None]:
        server, plan = self._servers[name], self._plan
        try:
            restarts = server.restarts_when_idle()
            llm = server.ensure()
            with ClosedLoop(llm.ipc, list(llm.pids.values()), server.is_running) as loop:
                window = loop.run(
                    plan.workload,
                    place["concurrency"],
                    block=place["block"],
                    ramp=plan.ramp,
                    seconds=plan.seconds,
                    timelines=place["followed"],
                )
            if server.restarts_when_idle() != restarts:
                raise LoadError("a process of the server died and was started again")
        except (LoadError, LaunchError, ServerError, ServerUnreachable) as error:
            cell = Cell(**place, failed=" ".join(str(error).split()))
            _say_failed(cell)
            return cell, None
        cell = measured(window, **place)
        if cell.failed:
            _say_failed(cell)
        return cell, window


def _say_failed(cell: Cell) -> None:
    where = f"{cell.topology}, C = {cell.concurrency}, block {cell.block}"
    print(f"{where} failed: {cell.failed}", file=sys.stderr)


def _facts(plan: Plan, servers: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": metadata.version("pdv-mp"),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "pyzmq": metadata.version("pyzmq"),
        "machine": platform.machine(),
        "cores": psutil.cpu_count(),
        "load_average": psutil.getloadavg(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "servers": servers,
        "concurrencies": list(plan.concurrencies),
        "blocks": plan.sequence.blocks,
        "ramp": plan.ramp,
        "seconds": plan.seconds,
        "budget": plan.budget,
        "precision": plan.precision,
        "prompts": len(plan.workload.prompts),
        "tokens": plan.workload.tokens,
        "seed": plan.workload.seed,
    }


def _report(comparison: Comparison, reference: str, output: Path) -> None:
    rows = comparison.rows()
    write_csv(output / "topologies.csv", rows)
    print(rate_table(rows, reference))
    stopped = f"; {comparison.stopped}" if comparison.stopped else ""
    print(
        f"\n{comparison.blocks} blocks{stopped}. All intervals hold at once with a probability of "
        f"{1 - ALPHA:.0%}; from {MIN_BLOCKS} blocks on.\nWhere the time of the clients' requests "
        "went, in the first block, which is run with timelines:\n"
    )
    print(time_table(rows))
    print(f"\n{output}: {', '.join(sorted(path.name for path in output.iterdir()))}")


@click.command(help=__doc__)
@click.option("--blocks", default=8, show_default=True, type=click.IntRange(1), help="at most")
@click.option(
    "--seconds",
    "length",
    default=2.5,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="of a window",
)
@click.option(
    "--ramp", default=1.0, show_default=True, type=click.FloatRange(0), help="seconds before it"
)
@click.option(
    "--budget",
    default="10m",
    show_default=True,
    metavar="TIME",
    callback=seconds,
    help="no block begins that would not end in it",
)
@click.option(
    "--precision",
    default=None,
    type=click.FloatRange(0, min_open=True),
    help="end sooner, once all ratios are known to a factor of 1 + this",
)
@click.option(
    "--concurrency", default="1,8,32", show_default=True, metavar="LIST", callback=whole_numbers
)
@click.option(
    "--topology",
    "names",
    default=",".join(TOPOLOGIES),
    show_default=True,
    metavar="LIST",
    help="the first one is the reference; pdv+kv-handoff=copy is pdv with that option",
)
@click.option(
    "--again/--no-again",
    default=True,
    show_default=True,
    help="a second server of the reference, whose difference to the first is noise",
)
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(2), help="on average")
@click.option("--prompt-length", default=128, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option(
    "--option",
    "common",
    multiple=True,
    metavar="NAME=VALUE",
    callback=launch_options,
    help="an option of pdv-launch for all servers; may be given several times",
)
@click.option(
    "--output",
    default=Path("build/topologies"),
    show_default=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
)
def main(
    blocks: int,
    length: float,
    ramp: float,
    budget: float,
    precision: float | None,
    concurrency: list[int],
    names: str,
    again: bool,
    tokens: int,
    prompt_length: int,
    seed: int,
    common: dict[str, str],
    output: Path,
) -> None:
    given = names.split(",")
    rows = {name: named(name) for name in given}
    if len(rows) < len(given) or len(set(concurrency)) < len(concurrency):
        raise click.BadParameter("a list names something twice")
    twin = given[0] + AGAIN if again else None
    if twin is not None:
        rows[twin] = rows[given[0]]
    if len(rows) < 2:
        raise click.BadParameter("there is nothing to compare")
    plan = Plan(
        concurrencies=concurrency,
        workload=Workload(held_out_prompts(prompt_length), tokens, seed),
        sequence=SequentialPlan(blocks),
        ramp=ramp,
        seconds=length,
        budget=budget,
        precision=precision,
        again=twin,
    )
    interrupted = False
    chosen: dict[str, tuple[str, dict[str, Any]]] = {
        name: (topology, {"enable_prefix_caching": False, **common, **own})
        for name, (topology, own) in rows.items()
    }
    with ExitStack() as stack:
        servers = {name: Server(*of) for name, of in chosen.items()}
        for server in servers.values():
            stack.callback(server.close)
        results = stack.enter_context(Results(output, _facts(plan, chosen)))
        comparison = Comparison(servers, plan, results)
        try:
            for server in servers.values():
                server.ensure()
            comparison.run()
        except LaunchError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            comparison.stopped, interrupted = "interrupted", True
    if comparison.blocks:
        _report(comparison, given[0], output)
    else:
        print("no block was finished", file=sys.stderr)
    if interrupted:
        sys.exit(EXIT_INTERRUPTED)
    failed = [cell for cell in comparison.cells if cell.failed]
    if failed or not comparison.blocks:
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
