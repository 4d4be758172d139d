"""What the records of a comparison say: rates, ratios with intervals over rounds, bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median_low

import msgspec

from bench.peers.plan import OURS
from bench.peers.records import CellRecord, FailureRecord, PairRecord, RunRecord, Shape, Workload
from bench.roofline import CellWork, ModelCost, Rates, best_length, cell_bound
from bench.roofline.bounds import acceptance_of, decode_bound
from bench.statistics import ALPHA, Estimate, Ratio, geometric_mean, paired_ratio

AUTO, FIXED, PLAIN = f"{OURS}:auto", f"{OURS}:fixed", f"{OURS}:plain"
NGRAM = f"{OURS}:ngram"


@dataclass(frozen=True, slots=True)
class Versus:
    """Two engines in one cell; ``ratio`` has no interval (None) with one round in common, where
    ``value`` is all that there is."""

    ours: str
    theirs: str
    value: float
    ratio: Ratio | None


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that the machine could reach in a turn of an engine, with the draft length that is
    best at the acceptance of that round. ``total``: tokens/s, prefill included; ``decode``: after
    the first tokens. Of several turns: means, and the middle length."""

    total: float
    decode: float
    length: int
    acceptance: float


@dataclass(frozen=True)
class CellSummary:
    """One workload at one concurrency: all engines. ``bounds``: one for each record, None where the
    machine's rates or the acceptance are not known."""

    pair: PairRecord
    workload: Workload
    concurrency: int
    records: tuple[CellRecord, ...]
    bounds: tuple[Bound | None, ...]

    @cached_property
    def rates(self) -> dict[str, dict[int, float]]:
        """Tokens/s by engine and round."""
        found: dict[str, dict[int, float]] = {}
        for record in self.records:
            found.setdefault(record.engine, {})[record.round] = record.rate
        return found

    @cached_property
    def _paired(self) -> dict[str, dict[tuple[int, int], float]]:
        """Tokens/s by engine, round and sitting."""
        found: dict[str, dict[tuple[int, int], float]] = {}
        for record in self.records:
            place = record.round, record.sitting
            found.setdefault(record.engine, {})[place] = record.rate
        return found

    def by_round(self, engine: str) -> Mapping[tuple[int, int], float]:
        """Tokens/s by round and sitting; empty if it was not measured."""
        return self._paired.get(engine, {})

    def rate(self, engine: str) -> Estimate | None:
        """The geometric mean of its rounds; None if it was not measured."""
        return geometric_mean(list(self.rates.get(engine, {}).values()), ALPHA)

    def decode_rate(self, engine: str) -> float | None:
        """After the first tokens, in the rounds in which that is known; None if in none."""
        known = [r.decode_rate() for r in self.records if r.engine == engine]
        found = geometric_mean([rate for rate in known if rate is not None], ALPHA)
        return None if found is None else found.value

    def best(self, of: Callable[[str], bool]) -> str | None:
        """The quickest of some engines. One that was measured in fewer rounds than others was far
        behind and is only chosen if it is alone."""
        engines = [engine for engine in self.rates if of(engine)]
        if not engines:
            return None
        rounds = max(len(self.rates[engine]) for engine in engines)
        full = [engine for engine in engines if len(self.rates[engine]) == rounds]
        estimates = {engine: self.rate(engine) for engine in full}
        return max(full, key=lambda one: found.value if (found := estimates[one]) else 0.0)

    @property
    def best_of_ours(self) -> str | None:
        """Our quickest mode."""
        return self.best(is_ours)

    @property
    def best_bounded(self) -> str | None:
        """Our quickest mode of those that the bound is of: what n-grams propose costs no step of a
        draft model, and is accepted at another rate."""
        return self.best(lambda engine: is_ours(engine) and engine != NGRAM)

    @cached_property
    def bound(self) -> Bound | None:
        """In the turns of :attr:`best_bounded`, or of all engines if it is none of them."""
        best = self.best_bounded
        found = [bound for record, bound in self._bounded if best in (None, record.engine)]
        if not found:
            return None
        return Bound(
            _mean([bound.total for bound in found]),
            _mean([bound.decode for bound in found]),
            int(median_low(bound.length for bound in found)),
            sum(bound.acceptance for bound in found) / len(found),
        )

    @property
    def _bounded(self) -> list[tuple[CellRecord, Bound]]:
        pairs = zip(self.records, self.bounds, strict=True)
        return [(record, bound) for record, bound in pairs if bound is not None]

    def share(self, engine: str | None) -> Estimate | None:
        """What part of its bound an engine reached in each turn, the geometric mean; None if that
        is not known."""
        shares = [r.rate / bound.total for r, bound in self._bounded if r.engine == engine]
        return geometric_mean(shares, ALPHA)

    def decode_share(self, engine: str | None) -> Estimate | None:
        """The same after the first tokens, in the rounds in which that is known."""
        shares = [
            rate / bound.decode
            for record, bound in self._bounded
            if record.engine == engine and (rate := record.decode_rate()) is not None
        ]
        return geometric_mean(shares, ALPHA)

    @property
    def best_of_theirs(self) -> str | None:
        """The quickest mode of the quickest peer."""
        return self.best(lambda engine: not is_ours(engine))

    def versus(self, ours: str | None, theirs: str | None) -> Versus | None:
        """A ratio over the rounds in which both were measured one after the other, in the same
        sitting; None without any."""
        if ours is None or theirs is None or ours == theirs:
            return None
        mine, other = self.by_round(ours), self.by_round(theirs)
        common = sorted(mine.keys() & other.keys())
        if not common:
            return None
        pairs = [mine[n] for n in common], [other[n] for n in common]
        if len(common) < 2:
            return Versus(ours, theirs, pairs[0][0] / pairs[1][0], None)
        ratio = paired_ratio(*pairs, ALPHA)
        return Versus(ours, theirs, ratio.estimate, ratio)


@dataclass(frozen=True, slots=True)
class EngineChecks:
    """How an engine's outputs fared: requests that were judged, those with the verifier's own
    tokens, and of these those with a near-tie. ``idle_cores``: the most that all others used
    during one of its turns."""

    engine: str
    version: str | None
    judged: int
    equal: int
    near_ties: int
    idle_cores: float


@dataclass(frozen=True)
class Summary:
    """A whole comparison."""

    run: RunRecord
    cells: tuple[CellSummary, ...]
    checks: tuple[EngineChecks, ...]
    failures: tuple[FailureRecord, ...]

    def cell(self, pair: str, workload: str, concurrency: int) -> CellSummary | None:
        """None if nothing was measured."""
        for cell in self.cells:
            if (cell.pair.name, cell.workload.name, cell.concurrency) == (
                pair,
                workload,
                concurrency,
            ):
                return cell
        return None

    @property
    def engines(self) -> list[str]:
        """Those with at least one cell, in the order of the run."""
        measured = {engine for cell in self.cells for engine in cell.rates}
        return [engine for engine in self.run.engines if engine in measured]


def is_ours(engine: str) -> bool:
    """Whether an engine is one of our modes."""
    return engine.startswith(f"{OURS}:")


def is_plain_peer(engine: str) -> bool:
    """Whether it is another's and does not speculate."""
    return not is_ours(engine) and engine.endswith(":plain")


def summarise(
    run: RunRecord, cells: Sequence[CellRecord], failures: Sequence[FailureRecord]
) -> Summary:
    """All that a page says of a comparison."""
    found = []
    for pair in run.pairs:
        for load in run.workloads:
            of_load = [c for c in cells if (c.pair, c.workload) == (pair.name, load.name)]
            of_any_concurrency = measured_acceptance(of_load)
            for concurrency in run.concurrencies:
                records = tuple(c for c in of_load if c.concurrency == concurrency)
                if records:
                    others = [measured_acceptance(records), of_any_concurrency]
                    bounds = tuple(
                        _bound(
                            run, pair, load, record, _first([_of_round(records, record), *others])
                        )
                        for record in records
                    )
                    found.append(CellSummary(pair, load, concurrency, records, bounds))
    names = [name for name in run.engines if any(c.engine == name for c in cells)]
    checks = tuple(_checks(name, [c for c in cells if c.engine == name]) for name in names)
    return Summary(run, tuple(found), checks, tuple(failures))


def _of_round(records: Sequence[CellRecord], one: CellRecord) -> float | None:
    """The acceptance of the prompts of a record's round: prompts differ in how well they can be
    drafted."""
    return measured_acceptance([record for record in records if record.round == one.round])


def _first(values: Sequence[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)


def measured_acceptance(records: Sequence[CellRecord]) -> float | None:
    """The chance that a draft token is accepted if all before it are: that at which cycles of the
    measured mean length yield the measured tokens. From our fixed draft length, else from ``auto``;
    None if neither drafted."""
    for engine in (FIXED, AUTO):
        sums: dict[str, int] = {}
        for record in records:
            if record.engine == engine:
                for name, count in (record.speculation or {}).items():
                    sums[name] = sums.get(name, 0) + count
        if sums.get("drafted", 0) and sums.get("cycles", 0):
            cycles = sums["cycles"]
            return acceptance_of(1 + sums["accepted"] / cycles, sums["drafted"] / cycles)
    return None


def _bound(
    run: RunRecord, pair: PairRecord, load: Workload, record: CellRecord, acceptance: float | None
) -> Bound | None:
    found = record.rates or run.rates
    if found is None or acceptance is None:
        return None
    rates = Rates("this CPU", max(found.read, found.copy), found.flops)
    verifier, draft = cost(pair.verifier), cost(pair.draft)
    plain = CellWork(record.concurrency, load.prompt, load.output)
    work = best_length(rates, verifier, draft, plain, acceptance)
    return Bound(
        cell_bound(rates, verifier, draft, work),
        decode_bound(rates, verifier, draft, work),
        int(work.length),
        acceptance,
    )


def _mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def cost(shape: Shape) -> ModelCost:
    """Of a recorded shape."""
    return ModelCost(**msgspec.structs.asdict(shape))


def _checks(engine: str, records: Sequence[CellRecord]) -> EngineChecks:
    return EngineChecks(
        engine,
        next((record.version for record in records if record.version), None),
        sum(record.judged for record in records),
        sum(record.equal for record in records),
        sum(record.near_ties for record in records),
        max(record.idle_cores for record in records),
    )


def by_reason(failures: Sequence[FailureRecord]) -> Mapping[tuple[str, str], list[str]]:
    """Engines and reasons, with where each happened."""
    found: dict[tuple[str, str], list[str]] = {}
    for failure in failures:
        where = failure.pair
        if failure.workload is not None:
            where += f", {failure.workload}, C = {failure.concurrency}"
        found.setdefault((failure.engine, failure.reason), []).append(where)
    return found
