"""Made-up folders of results: the raw records of runs whose truth is known."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.results.records import (
    SCHEMA_VERSION,
    Candidate,
    CellRecord,
    Counts,
    End,
    GpuUse,
    Load,
    Objective,
    Pair,
    RequestRecord,
    Run,
    Use,
)
from bench.results.store import ResultsFolder

SECOND = 1_000_000_000
DRAFT_LENGTH = 4
AGAIN = " (again)"

Place = tuple[str, str, int]
"""A candidate, a load and a block."""


class FolderInMemory(ResultsFolder):
    """A folder that was never written, for simulations of many runs."""

    def __init__(
        self,
        run: Run,
        cells: Sequence[tuple[CellRecord, list[RequestRecord]]],
        end: End | None = None,
    ) -> None:
        super().__init__(Path("memory"))
        self._run = run
        self._cells = [cell for cell, _ in cells]
        self._requests = {cell.id: requests for cell, requests in cells}
        self._end = end

    def add(self, cell: CellRecord, requests: Iterable[RequestRecord]) -> None:
        self._cells.append(cell)
        self._requests[cell.id] = list(requests)

    def end(self, end: End) -> None:
        self._end = end

    def run(self) -> Run:
        return self._run

    def resume(self) -> list[CellRecord]:
        return self._cells

    def cells(self) -> list[CellRecord]:
        return self._cells

    def requests(self, cell: CellRecord) -> list[RequestRecord]:
        return self._requests[cell.id]

    def stopped(self) -> End | None:
        return self._end


def default_rate(candidate: str, load: Load) -> float:
    """Output tokens/s: all alike, and more with more clients."""
    return 400.0 * (load.concurrency or 8) ** 0.5


def default_share(candidate: str, load: Load) -> float:
    """The orchestration share."""
    return 0.1


@dataclass(frozen=True)
class Truth:
    """What a made run is drawn from.

    ``rate``, ``share``: tokens/s and orchestration share of a candidate under a load. ``noise``: of
    each cell's log rate; ``block_noise``: of what all cells of a block have in common.
    ``acceptance``: probability that a draft token is accepted. ``tokens``: of a request, at most.
    ``failed``, ``invalid``: reasons by place; ``lasting``: blocks that are there, without warm-up,
    None: all; ``ended``: whether the run says why it stopped; ``gpu``: whether there is one;
    ``host_load``: cores that other programs used.
    """

    candidates: Mapping[str, str] | Sequence[str] = ("unified", "pd", "pdv")
    twin: bool = True
    concurrencies: Sequence[int] = (1, 8, 32)
    rates: Sequence[float] = ()
    pairs: Sequence[str] = ("shipped",)
    blocks: int = 8
    rate: Callable[[str, Load], float] = default_rate
    share: Callable[[str, Load], float] = default_share
    noise: float = 0.01
    block_noise: float = 0.1
    acceptance: float = 0.6
    tokens: int = 48
    window: float = 1.0
    ramp: float = 0.25
    objective: Objective = field(default_factory=Objective)
    precision: float | None = None
    failed: Mapping[Place, str] = field(default_factory=dict)
    invalid: Mapping[Place, str] = field(default_factory=dict)
    lasting: int | None = None
    ended: bool = True
    gpu: bool = False
    host_load: float = 0.1
    seed: int = 0

    @property
    def reference(self) -> str:
        """The first candidate."""
        return next(iter(self.topologies))

    @property
    def topologies(self) -> dict[str, str]:
        """By candidate."""
        if isinstance(self.candidates, Mapping):
            return dict(self.candidates)
        return {name: name for name in self.candidates}

    def run(self) -> Run:
        """``run.json``."""
        candidates = [Candidate(name=n, topology=t) for n, t in self.topologies.items()]
        if self.twin:
            first = candidates[0]
            candidates.append(
                Candidate(name=first.name + AGAIN, topology=first.topology, twin_of=first.name)
            )
        loads = [Load(name=f"C={c}", kind="closed", concurrency=c) for c in self.concurrencies]
        loads += [Load(name=f"rate={r:g}", kind="open", rate=r, burstiness=1) for r in self.rates]
        return Run(
            schema_version=SCHEMA_VERSION,
            started="2026-01-01T00:00:00+00:00",
            command=["pdv-bench", "sweep"],
            seed=self.seed,
            reference=self.reference,
            candidates=candidates,
            pairs=[Pair(name=name, model_fingerprint="0" * 64) for name in self.pairs],
            loads=loads,
            blocks=self.blocks,
            window=self.window,
            ramp=self.ramp,
            budget=600.0,
            precision=self.precision,
            workload={"kind": "held-out", "tokens": self.tokens},
            objective=self.objective,
            environment={
                "versions": {"python": "3.11.0", "torch": "2.0", "pdv-mp": "0.0"},
                "machine": {"system": "Linux", "cores": 2, "processor": "a processor"},
                "commit": {"id": "0123456789abcdef", "dirty": False},
            },
        )

    def cells(self, run: Run) -> Iterator[tuple[CellRecord, list[RequestRecord]]]:
        """All cells with their requests, in the order of a sweep."""
        lasting = self.blocks if self.lasting is None else self.lasting
        for p, pair in enumerate(run.pairs):
            for block in range(lasting + 1):
                for n, load in enumerate(run.loads):
                    common = self._draw("common", pair.name, load.name, block).normal()
                    for c, candidate in enumerate(run.candidates):
                        order = (c + block + n) % len(run.candidates)
                        place = (candidate.name, load.name, block)
                        cell = CellRecord(
                            schema_version=SCHEMA_VERSION,
                            id=f"p{p}-b{block:04}-l{n}-c{c}",
                            pair=pair.name,
                            candidate=candidate.name,
                            load=load.name,
                            block=block,
                            order=order,
                            followed=not block,
                            started=run.started,
                            window_ns=round(self.window * SECOND),
                            failed=self.failed.get(place),
                        )
                        if cell.failed is not None:
                            yield cell, []
                            continue
                        yield self._measured(cell, candidate, load, common)

    def _draw(self, *of: str | int) -> np.random.Generator:
        key = zlib.crc32(repr(of).encode())
        return np.random.default_rng((self.seed, key))

    def _measured(
        self, cell: CellRecord, candidate: Candidate, load: Load, common: float
    ) -> tuple[CellRecord, list[RequestRecord]]:
        original = candidate.twin_of or candidate.name
        draw = self._draw(cell.pair, candidate.name, load.name, cell.block)
        factor = np.exp(self.block_noise * common + self.noise * draw.normal())
        rate = self.rate(original, load) * float(factor)
        clients = load.concurrency or 8
        requests: list[RequestRecord] = []
        for client in range(clients):
            requests += self._client(client, rate / clients, draw)
        requests.sort(key=lambda request: request.sent_ns)
        if cell.followed:
            share = self.share(original, load)
            requests = [_followed(request, share) for request in requests]
        present = [request for request in requests if request.ended_ns >= 0]
        cut_off = sum(request.cut_off for request in present)
        open_loop = load.kind == "open"
        changes: dict[str, Any] = {
            "invalid": self.invalid.get((cell.candidate, cell.load, cell.block)),
            "counts": Counts(
                offered=len(present), completed=len(present) - cut_off, cut_off=cut_off
            ),
            "lateness_ms": 0.2 if open_loop else None,
            "uses": {name: _use(cores) for name, cores in _processes(candidate.topology)},
            "gpus": [GpuUse(name="a GPU", utilisation=0.5, memory_bytes=2**30)] * self.gpu,
            "host_load": self.host_load,
            "took": self.window + self.ramp,
        }
        return _changed(cell, **changes), requests

    def _client(
        self, client: int, rate: float, draw: np.random.Generator
    ) -> Iterator[RequestRecord]:
        """One request after another, each a few tokens at a time, with ``rate`` tokens/s in all."""
        window, now = round(self.window * SECOND), -round(self.ramp * SECOND)
        # Clients are at different places of their first requests.
        short = int(draw.integers(1, self.tokens + 1))
        while now < window:
            length = short or int(draw.integers(self.tokens // 4 or 1, self.tokens + 1))
            short = 0
            arrival = now
            events: list[tuple[int, int]] = []
            flags: list[int] = []
            cycles = drafted = accepted = 0
            at = [0] * DRAFT_LENGTH
            while len(flags) < length:
                # The prefill gives the first token; drafts leave room for the verifier's own.
                proposed = min(DRAFT_LENGTH, length - len(flags) - 1) if flags else 0
                matched = 0
                while matched < proposed and draw.random() < self.acceptance:
                    matched += 1
                now += round((matched + 1) / rate * SECOND)
                if now >= window:
                    break
                for position in range(matched):
                    at[position] += 1
                cycles += proposed > 0
                drafted += proposed
                accepted += matched
                flags += [1] * matched + [0]
                events.append((now, matched + 1))
            whole = len(flags) == length
            yield RequestRecord(
                client=client,
                prompt=int(draw.integers(20)),
                prompt_tokens=16,
                max_tokens=length,
                seed=int(draw.integers(2**31)),
                arrival_ns=arrival,
                sent_ns=arrival,
                ended_ns=events[-1][0] if whole else window + 1_000_000,
                events=events,
                ids=[int(number) for number in draw.integers(0, 1000, len(flags))],
                drafted=flags,
                finish="length" if whole else "abort",
                cut_off=not whole,
                usage={"prompt_tokens": 16, "completion_tokens": len(flags), "cached_tokens": 0},
                speculation={
                    "cycles": cycles,
                    "drafted": drafted,
                    "accepted": accepted,
                    "accepted_per_pos": at,
                },
                timing={"queue_ms": 0.5, "ttft_ms": 2.0, "e2e_ms": 50.0},
            )

    def end(self, run: Run) -> End:
        """``end.json``."""
        blocks = self.blocks if self.lasting is None else self.lasting
        return End(
            schema_version=SCHEMA_VERSION,
            blocks=blocks,
            looked=run.precision is not None,
            alpha=0.05,
            stopped="all blocks were measured",
        )

    def in_memory(self) -> FolderInMemory:
        """As a folder that is not written."""
        run = self.run()
        return FolderInMemory(run, list(self.cells(run)), self.end(run) if self.ended else None)

    def write(self, path: Path) -> ResultsFolder:
        """As a folder on disk."""
        folder, run = ResultsFolder(path), self.run()
        folder.begin(run)
        for cell, requests in self.cells(run):
            folder.add(cell, requests)
        if self.ended:
            folder.end(self.end(run))
        return folder


def bare_cell(
    run: Run, id: str, candidate: str, load: str, block: int, tokens: int, *, pair: str = "shipped"
) -> tuple[CellRecord, list[RequestRecord]]:
    """The least that has a throughput: one request that got all its tokens at once."""
    cell = CellRecord(
        schema_version=SCHEMA_VERSION,
        id=id,
        pair=pair,
        candidate=candidate,
        load=load,
        block=block,
        order=0,
        followed=not block,
        started=run.started,
        window_ns=SECOND,
        took=1.0,
    )
    request = RequestRecord(
        client=0,
        prompt=0,
        prompt_tokens=1,
        max_tokens=tokens,
        seed=0,
        arrival_ns=0,
        sent_ns=0,
        ended_ns=1000,
        events=[(1000, tokens)],
        ids=[],
        drafted=[],
        finish="length",
    )
    return cell, [request]


def make_results(path: Path, **truth: Any) -> ResultsFolder:
    """A folder on disk; ``truth``: fields of :class:`Truth`."""
    return Truth(**truth).write(path)


def _changed(cell: CellRecord, **changes: Any) -> CellRecord:
    values = {name: getattr(cell, name) for name in CellRecord.__struct_fields__}
    return CellRecord(**{**values, **changes})


def _followed(request: RequestRecord, share: float) -> RequestRecord:
    """With a timeline of which ``share`` is orchestration."""
    total = max(1, request.ended_ns - request.arrival_ns)
    parts = {
        "front.text": 0.1 * share,
        "front>verify.wire": 0.4 * share,
        "verify.inbox": 0.5 * share,
        "front.queue": 0.05 * (1 - share),
        "prefill.compute": 0.15 * (1 - share),
        "draft.compute": 0.2 * (1 - share),
        "verify.busy": 0.1 * (1 - share),
        "verify.compute": 0.5 * (1 - share),
    }
    states = {name: {"n": 1, "ns": round(part * total)} for name, part in parts.items()}
    timeline = {
        "e2e_ns": sum(entry["ns"] for entry in states.values()),
        "states": states,
        "overlapped": {},
    }
    values = {name: getattr(request, name) for name in RequestRecord.__struct_fields__}
    return RequestRecord(**{**values, "timeline": timeline})


def _processes(topology: str) -> Iterator[tuple[str, float]]:
    workers = {"pd": 2, "pdv": 3}.get(topology, 1)
    yield "launcher", 0.0
    yield "front", 0.1
    if workers > 1:
        yield "pools", 0.0
    for number in range(workers):
        yield f"worker-{number}", 1.5 / workers
    yield "clients", 0.05


def _use(cores: float) -> Use:
    return Use(
        cores=cores,
        voluntary_switches=100,
        involuntary_switches=10,
        rss_bytes=200 * 2**20,
        pss_bytes=100 * 2**20,
    )
