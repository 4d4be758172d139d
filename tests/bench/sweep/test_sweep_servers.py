"""``bench.sweep.pair_servers``: real servers, one of which dies, cost a cell and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import tiny_arguments
from simulated_sweep import Told, made_run
from tiny_model import VOCABULARY, TinyPair

from bench.load import Ask, Workload
from bench.load.lengths import fixed
from bench.load.window import tokens_within
from bench.results.records import Candidate, Load, Pair, Run
from bench.results.store import ResultsFolder
from bench.servers import Server
from bench.sweep.pair_servers import PairServers
from bench.sweep.pairs import ModelPair
from bench.sweep.plan import places
from bench.sweep.sweep import Sweep
from pdv_mp.client.client import ServerUnreachable
from pdv_mp.client.llm import LaunchError

PROMPTS = [
    [(7 * number + step) % (VOCABULARY - 1) + 1 for step in range(12)] for number in range(9)
]
LOADS = [Load(name="C=2", kind="closed", concurrency=2)]


def tiny_options(pair: TinyPair) -> dict[str, str]:
    flags = iter(tiny_arguments(pair))
    given = {name[2:].replace("-", "_"): value for name, value in zip(flags, flags, strict=True)}
    return {name: value for name, value in given.items() if not name.endswith("model")}


def tiny_run(pair: TinyPair, **changes: object) -> tuple[Run, ModelPair]:
    options = tiny_options(pair)
    candidates = [Candidate(name="one", topology="unified", options=options)]
    values = {"candidates": candidates, "loads": LOADS, "window": 0.3}
    found = ModelPair(Pair(name="shipped"), pair.verifier, pair.draft)
    return made_run(**{**values, "ramp": 0.05, "blocks": 1, **changes}), found


@dataclass(frozen=True, slots=True)
class DeadlyWorkload(Workload):
    """Kills a process when the first request of the first window has ended."""

    victims: tuple[int, ...] = ()
    windows: tuple[int, ...] = ()

    def asks(self, block: int, load: Load, client: int) -> Iterator[Ask]:
        if client == 0:
            object.__setattr__(self, "windows", (*self.windows, block))
        turn = len(self.windows)
        for number, ask in enumerate(Workload.asks(self, block, load, client)):
            if (turn, client, number) == (1, 0, 1):
                for pid in self.victims:
                    os.kill(pid, signal.SIGKILL)
            yield ask


@pytest.mark.slow
def test_a_server_that_dies_costs_a_cell_and_is_started_again(
    tiny_pair: TinyPair, run_place: object, tmp_path: Path
) -> None:
    run, pair = tiny_run(tiny_pair)
    workload = DeadlyWorkload(PROMPTS, fixed(12))
    folder = ResultsFolder(tmp_path)
    folder.begin(run)
    with PairServers(run, pair, {"C=2": workload}, must_start=True) as servers:
        victim = servers._servers["one"].ensure().pids["launcher"]
        object.__setattr__(workload, "victims", (victim,))
        opened = contextlib.nullcontext(servers)
        end = Sweep(folder, run, lambda number: opened, Told(), 1e6).run()
    failed, cell = folder.cells()
    assert (failed.failed, failed.block) == ("the server has ended", 0)
    assert folder.requests(failed) == []
    assert (cell.failed, cell.block, end.blocks) == (None, 1, 1)
    requests = folder.requests(cell)
    assert tokens_within(requests, cell.window_ns) > 0
    assert cell.counts.completed > 0
    assert cell.uses["worker-0"].cores > 0
    assert cell.took > 0.6
    # The server was cold again: its first window of block 1 was thrown away.
    assert workload.windows == (0, 0, 1)


class Hung(Server):
    """A server that runs and answers nothing."""

    def __init__(self) -> None:
        super().__init__("unified", {})
        self.closed = 0

    def restarts_when_idle(self) -> int:
        raise ServerUnreachable("nothing was heard\nfor 20 s")

    def close(self) -> None:
        self.closed += 1


def test_a_server_that_answers_nothing_is_ended(tiny_pair: TinyPair) -> None:
    run, pair = tiny_run(tiny_pair)
    servers = PairServers(run, pair, {}, must_start=True)
    hung = servers._servers["one"] = Hung()
    cell, requests = servers(next(places(run, 0, 0)))
    assert (cell.failed, requests) == ("nothing was heard for 20 s", [])
    assert hung.closed == 1


def test_a_server_that_does_not_start_is_said_first_and_fails_its_cells_later(
    tiny_pair: TinyPair, run_place: object
) -> None:
    bad = [Candidate(name="bad", topology="unified", options={"max_num_seqs": "many"})]
    run, pair = tiny_run(tiny_pair, candidates=bad)
    works = {"C=2": Workload(PROMPTS, fixed(12))}
    with pytest.raises(LaunchError, match=r"^bad did not start: .*max-num-seqs"):
        PairServers(run, pair, works, must_start=True).__enter__()
    with PairServers(run, pair, works, must_start=False) as servers:
        (place,) = places(run, 0, 0)
        cell, requests = servers(place)
    assert "max-num-seqs" in str(cell.failed)
    assert not requests
