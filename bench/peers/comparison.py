"""One interleaved comparison: all engines resident, one of them asked at a time.

Every round runs every engine once on the same fresh prompts in rotated order, so what a slow minute
does to one it does to all. An engine that fails is left out from then on, with its reason in the
records.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bench.peers.engine import Engine, Generated
from bench.peers.errors import PeerError
from bench.peers.pairs import Pair
from bench.peers.plan import (
    WARM_UP_TOKENS,
    Cell,
    Choice,
    Plan,
    Prompts,
    PromptSource,
    far_behind,
    rotated,
)
from bench.peers.records import CellRecord, FailureRecord, PeersFolder, RatesRecord

Start = Callable[[Choice], Engine]
"""Starts and loads an engine; raises PeerError."""

Say = Callable[[str], object]

FRESH_SECONDS = 2.0
"""So long what the machine reached after a turn holds before the next one."""


class MachineNow:
    """What the machine reaches, while no engine computes."""

    def __init__(self, measure: Callable[[], RatesRecord | None]) -> None:
        self._measure = measure
        self._last: RatesRecord | None = None
        self._at = -FRESH_SECONDS

    def before(self) -> RatesRecord | None:
        """A turn begins."""
        return self._last if time.monotonic() < self._at + FRESH_SECONDS else self.after()

    def after(self) -> RatesRecord | None:
        """A turn has ended."""
        self._last = self._measure()
        self._at = time.monotonic()
        return self._last


class Comparison:
    """The measurement of one pair; a context manager that leaves no process behind."""

    def __init__(
        self,
        plan: Plan,
        pair: Pair,
        folder: PeersFolder,
        start: Start,
        judge: Callable[[], Engine],
        say: Say,
        rates: Callable[[], RatesRecord | None],
    ) -> None:
        """``rates``: measures the machine; None where that fails."""
        self._plan = plan
        self._machine = MachineNow(rates)
        self._pair = pair
        self._folder = folder
        self._start = start
        self._start_judge = judge
        self._say = say
        self._prompts = PromptSource(pair.verifier, plan.seed)
        self._engines: dict[str, Engine] = {}
        self._judge: Engine | None = None
        self._may_judge = True
        self._records = [cell for cell in folder.cells() if cell.pair == pair.name]
        self._sitting = 1 + max((cell.sitting for cell in self._records), default=0)
        self._took: dict[tuple[str, int], float] = {}

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *_: object) -> None:
        engines = [*self._engines.values(), *filter(None, [self._judge])]
        for engine in engines:
            engine.hang_up()
        for engine in engines:
            engine.close()

    def run(self, deadline: float | None) -> bool:
        """Measures what is not measured yet; False if that takes until after ``deadline``, a
        time of the monotonic clock, and the rest is left. Raises PeersError if the folder cannot be
        written."""
        open_cells = [cell for cell in self._plan.cells() if self._open(cell)]
        if not open_cells:
            return True
        missing = {choice for cell in open_cells for choice in self._open(cell)}
        for choice in self._plan.engines:
            if choice in missing:
                self._bring_up(choice)
        for cell in open_cells:
            known = self._took.get((cell.workload.name, cell.concurrency), 0.0)
            if deadline is not None and time.monotonic() + known > deadline:
                self._say(f"{self._pair.name}: the time is over; the rest is not measured")
                return False
            self._measure(cell)
        return True

    def _bring_up(self, choice: Choice) -> None:
        name, started = choice.name, time.monotonic()
        try:
            engine = self._start(choice)
        except PeerError as error:
            self._fail(name, str(error))
            return
        before = {cell.version for cell in self._records if cell.engine == name}
        if before - {engine.version}:
            known = ", ".join(str(version) for version in sorted(before, key=str))
            engine.hang_up()
            engine.close()
            self._fail(name, f"it is {engine.version} now, and was measured as {known} here")
            return
        self._engines[name] = engine
        try:
            for concurrency in filter(choice.takes_part, self._plan.concurrencies):
                length = self._plan.workloads[0].prompt
                prompts = self._prompts.warm_up(length, concurrency)
                tokens = min(WARM_UP_TOKENS, self._plan.workloads[0].output)
                self._generated(engine, prompts, tokens)
        except PeerError as error:
            self._drop(name, str(error), None)
            return
        self._say(f"{name} {engine.version or ''}: ready after {time.monotonic() - started:.0f} s")

    def _open(self, cell: Cell) -> list[Choice]:
        """The engines that are still to be measured in a cell."""
        same = [
            record
            for record in self._records
            if (record.workload, record.concurrency) == (cell.workload.name, cell.concurrency)
        ]
        left_out = {record.engine for record in same if record.round == cell.round}
        if cell.round:
            left_out |= far_behind(same, self._plan.limits.once_below)
        return [
            choice
            for choice in self._plan.engines
            if choice.name not in left_out and choice.takes_part(cell.concurrency)
        ]

    def _measure(self, cell: Cell) -> None:
        """Another engine is the first in the cell's next round, and at the next concurrency."""
        started, turn = time.monotonic(), self._plan.concurrencies.index(cell.concurrency)
        prompts = self._prompts.of(cell)
        verdicts: dict[tuple[int, tuple[int, ...]], tuple[int, int]] = {}
        names = [one.name for one in self._open(cell) if one.name in self._engines]
        for order, name in enumerate(rotated(names, cell.round + turn)):
            try:
                self._turn(cell, order, name, prompts, verdicts)
            except PeerError as error:
                self._drop(name, str(error), cell)
        self._took[cell.workload.name, cell.concurrency] = time.monotonic() - started

    def _turn(
        self,
        cell: Cell,
        order: int,
        name: str,
        prompts: Prompts,
        verdicts: dict[tuple[int, tuple[int, ...]], tuple[int, int]],
    ) -> None:
        engine, tokens = self._engines[name], cell.workload.output
        others = [other for other in self._engines.values() if other is not engine]
        rates_before = self._machine.before()
        before = sum(other.cpu_seconds() for other in others)
        found = self._generated(engine, prompts, tokens)
        idle = max(0.0, sum(other.cpu_seconds() for other in others) - before)
        rates = self._machine.after()
        if rates is not None and rates_before is not None:
            rates = rates.mean(rates_before)
        prefill = None
        if cell.round == 0 and tokens > 1:
            prefill = self._generated(engine, prompts, 1).seconds
        judged = self._judged(prompts, found, verdicts)
        record = CellRecord(
            pair=self._pair.name,
            workload=cell.workload.name,
            concurrency=cell.concurrency,
            round=cell.round,
            order=order,
            engine=name,
            version=engine.version,
            tokens=len(prompts) * tokens,
            seconds=found.seconds,
            prefill_seconds=prefill,
            judged=len(judged),
            equal=sum(wrong == 0 for _, wrong in judged),
            near_ties=sum(wrong == 0 < near for near, wrong in judged),
            idle_cores=idle / found.seconds,
            sitting=self._sitting,
            speculation=found.speculation,
            rates=rates,
        )
        self._folder.add(record)
        self._records.append(record)
        self._say(
            f"{self._pair.name}, {record.workload}, C = {record.concurrency}, round "
            f"{record.round + 1}: {name} {record.rate:.1f} tokens/s"
        )

    def _generated(self, engine: Engine, prompts: Prompts, tokens: int) -> Generated:
        """Raises PeerError for an answer of another length as well."""
        found = engine.generate(prompts, tokens, self._plan.limits.answer)
        if found.tokens is not None and not found.ids:
            counts = [found.tokens / len(prompts)] * len(prompts)
        else:
            counts = [float(len(ids)) for ids in found.ids]
        if counts != [float(tokens)] * len(prompts):
            said = ", ".join(f"{count:g}" for count in counts[:8])
            raise PeerError(
                f"asked for {tokens} tokens of each of {len(prompts)} requests, it made {said}"
            )
        return found

    def _judged(
        self,
        prompts: Prompts,
        found: Generated,
        verdicts: dict[tuple[int, tuple[int, ...]], tuple[int, int]],
    ) -> list[tuple[int, int]]:
        """Near-ties and wrong tokens of the first requests; engines that say the same are judged
        once."""
        keys = [(at, tuple(ids)) for at, ids in enumerate(found.ids[: self._plan.limits.judged])]
        fresh = [key for key in keys if key not in verdicts]
        if fresh and self._may_judge:
            texts = [prompts[at] + list(ids) for at, ids in fresh]
            try:
                if self._judge is None:
                    self._judge = self._start_judge()
                answer = self._judge.generate(texts, len(prompts[0]), self._plan.limits.answer)
            except PeerError as error:
                self._may_judge = False
                self._fail("judge", str(error))
            else:
                for key, (near, wrong) in zip(fresh, answer.ids, strict=True):
                    verdicts[key] = (near, wrong)
        return [verdicts[key] for key in keys if key in verdicts]

    def _drop(self, name: str, reason: str, cell: Cell | None) -> None:
        self._engines.pop(name).close()
        self._fail(name, reason, cell)

    def _fail(self, name: str, reason: str, cell: Cell | None = None) -> None:
        self._folder.add_failure(
            FailureRecord(
                pair=self._pair.name,
                engine=name,
                reason=reason,
                workload=None if cell is None else cell.workload.name,
                concurrency=None if cell is None else cell.concurrency,
                round=None if cell is None else cell.round,
            )
        )
        self._say(f"{name}: {reason}")


def log_path(folder: Path, pair: Pair, name: str) -> Path:
    """Where an engine prints."""
    path = folder / "logs" / pair.name.replace(" ", "-") / f"{name.replace(':', '-')}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
