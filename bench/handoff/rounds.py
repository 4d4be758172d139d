"""Interleaved rounds: all variants serve the same requests, one after the other.

All servers are started once and run at the same time, but only one is asked at a time. One that
spins would take a core from the others meanwhile: its processes are stopped until its turn comes.
Every round gives each of them, in rotated order, the same fresh prompts, cut from the held-out
files, greedily and with so many requests open at once. The first round is warm-up and does not
count.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil

from bench.handoff import processes
from bench.handoff.cells import Cell, Timed
from bench.handoff.errors import HandoffError
from bench.handoff.variants import Variant
from bench.load.usage import Processes
from bench.servers import SAME_WORK, Server
from pdv_mp import SamplingParams
from pdv_mp.client.client import Client, Completion
from pdv_mp.workers.handoffs import between

FOLLOWED_EVERY = 4
"""Of so many counted rounds, the first is served a second time, with timelines; they cost some time
themselves."""

LAUNCHER = "launcher"

Prompts = Sequence[Sequence[int]]
Ids = list[list[int]]


@dataclass(frozen=True, slots=True)
class Load:
    """``requests``: of each client in a round; ``rounds``: that count."""

    prompts: Prompts
    concurrencies: Sequence[int]
    rounds: int
    requests: int
    tokens: int


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


class Served:
    """A running server of a variant. Close it, whatever happens: its processes may be stopped."""

    def __init__(self, variant: Variant, options: Mapping[str, Any]) -> None:
        """``options``: of ``pdv-launch``, besides the variant's own. Raises LaunchError if the
        server does not start."""
        self.name = variant.name
        given: dict[str, Any] = {**SAME_WORK, **options, **variant.options}
        if variant.spins:
            given["lane_timeout"] = 0  # a process that is stopped here has not died
        with ExitStack() as stack:
            server = Server(variant.topology, given)
            stack.callback(server.close)
            llm = server.ensure()
            self.client = stack.enter_context(Client(llm.ipc))
            pids = llm.pids
            self.processes = Processes(pids)
            self.configuration: dict[str, Any] = self.client.info()["configuration"]
            # The launcher goes on: should this process be killed, it ends the others.
            others = [pid for name, pid in pids.items() if name != LAUNCHER and variant.spins]
            self._stopped = [psutil.Process(pid) for pid in others]
            self._stack = stack.pop_all()
        self._suspend()

    @contextmanager
    def awake(self) -> Iterator[Client]:
        """While its turn is."""
        self._resume()
        try:
            yield self.client
        finally:
            self._suspend()

    def close(self) -> None:
        """End the server."""
        self._resume()
        self._stack.close()

    def _suspend(self) -> None:
        for process in self._stopped:
            with suppress(psutil.NoSuchProcess):  # its end is found when it is asked for its use
                process.suspend()

    def _resume(self) -> None:
        for process in self._stopped:
            with suppress(psutil.NoSuchProcess):
                process.resume()


@dataclass
class Measured:
    """``cells``: by variant and concurrency. Of the ``compared`` outputs, ``differing`` were not
    those of the first variant. ``configurations``: by variant, the server's own words."""

    cells: dict[tuple[str, int], Cell]
    configurations: dict[str, dict[str, Any]]
    compared: int = 0
    differing: int = 0

    @property
    def wrong(self) -> list[str]:
        """Whether outputs differ, in words."""
        if not self.differing:
            return []
        return [f"{self.differing} of {self.compared} outputs differ from those of another server"]


def measure(
    variants: Sequence[Variant], load: Load, options: Mapping[str, Mapping[str, Any]]
) -> Measured:
    """Start a server of each variant, run all rounds and end them. ``options``: by name of the
    variant, options of its server besides its own.

    Raises LaunchError if a server does not start, ServerError or ServerUnreachable if one does not
    serve, LoadError if a process of one has ended, HandoffError if one does not make as many tokens
    as asked.
    """
    with ExitStack() as stack:
        servers = []
        for variant in variants:
            servers.append(Served(variant, options.get(variant.name, {})))
            stack.callback(servers[-1].close)
            print(f"{variant.name} serves", file=sys.stderr)
        bench = _Bench(servers, load)
        bench.run()
    return bench.measured


class _Bench:
    def __init__(self, servers: Sequence[Served], load: Load) -> None:
        self._servers = list(servers)
        self._load = load
        self.measured = Measured(
            {(s.name, c): Cell() for c in load.concurrencies for s in servers},
            {server.name: server.configuration for server in servers},
        )

    def run(self) -> None:
        load, count = self._load, len(self._servers)
        used = 0
        for turn in range(load.rounds + 1):
            for concurrency in load.concurrencies:
                number = concurrency * load.requests
                chosen = [load.prompts[(used + i) % len(load.prompts)] for i in range(number)]
                used += number
                first: Ids | None = None
                at = turn % count
                for server in self._servers[at:] + self._servers[:at]:
                    for ids in self._measure(server, chosen, concurrency, turn):
                        first = ids if first is None else first
                        self.measured.compared += len(ids)
                        self.measured.differing += sum(
                            a != b for a, b in zip(first, ids, strict=True)
                        )
            print(f"round {turn} of {load.rounds} done", file=sys.stderr)

    def _measure(
        self, server: Served, prompts: Prompts, concurrency: int, turn: int
    ) -> Iterator[Ids]:
        tokens = self._load.tokens
        cell = self.measured.cells[server.name, concurrency]
        with server.awake() as client:
            before, used = client.info()["handoffs"], server.processes.sample()
            started = time.monotonic_ns()
            timed = serve(client, prompts, concurrency, tokens, timeline=False)
            window = (started, time.monotonic_ns())
            use = processes.between(used, server.processes.sample())
            after = client.info()["handoffs"]
            followed = []
            if turn % FOLLOWED_EVERY == 1:
                followed = serve(client, prompts, concurrency, tokens, timeline=True)
        made = sum(len(done.ids) for done in timed)
        if made != len(prompts) * tokens:
            raise HandoffError(f"{server.name} made {made} tokens, not {len(prompts) * tokens}")
        if turn:
            asked = sum(map(len, prompts))
            cell.timed.append(Timed(window, made, asked, between(before, after), use))
            cell.add_timelines(followed)
        yield [done.ids for done in timed]
        if followed:
            yield [done.ids for done in followed]
