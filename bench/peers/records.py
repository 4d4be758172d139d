"""What one comparison writes, as the lines of its JSON files hold it.

``run.json`` says what was to be measured; ``cells.jsonl`` has a line for every turn of an engine;
``failures.jsonl`` one for every engine that did not take part to the end. Lines are only ever
appended, so a run that was cut off is taken up after the last whole one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bench.peers.errors import PeersError

SCHEMA_VERSION = 1
RUN, CELLS, FAILURES = "run.json", "cells.jsonl", "failures.jsonl"

_Record = TypeVar("_Record")


class Workload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tokens of every prompt, and new tokens of every request."""

    prompt: int
    output: int

    @property
    def name(self) -> str:
        """``128+64``."""
        return f"{self.prompt}+{self.output}"


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model's cost follows from (:class:`bench.roofline.ModelCost`)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    bytes_per_number: int


class PairRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pair. Fingerprints: SHA-256 of the weights."""

    name: str
    verifier_fingerprint: str
    draft_fingerprint: str
    verifier: Shape
    draft: Shape


class RatesRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the machine reached: bytes/s read and copied, float32 operations/s of a matrix
    product."""

    threads: int
    read: float
    copy: float
    flops: float

    def best(self, other: RatesRecord) -> RatesRecord:
        """The higher of each rate."""
        return RatesRecord(
            threads=self.threads,
            read=max(self.read, other.read),
            copy=max(self.copy, other.copy),
            flops=max(self.flops, other.flops),
        )

    def mean(self, other: RatesRecord) -> RatesRecord:
        """Between both: what takes a time each counts by its time (harmonic means)."""
        return RatesRecord(
            threads=self.threads,
            read=2 / (1 / self.read + 1 / other.read),
            copy=2 / (1 / self.copy + 1 / other.copy),
            flops=2 / (1 / self.flops + 1 / other.flops),
        )


class RunRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``run.json``. ``rounds``: of each concurrency; ``engines``: ``peer:mode``."""

    schema_version: int
    started: str
    command: list[str]
    environment: dict[str, Any]
    seed: int
    threads: int
    draft_tokens: int
    engines: list[str]
    pairs: list[PairRecord]
    workloads: list[Workload]
    concurrencies: list[int]
    rounds: list[int]
    rates: RatesRecord | None = None

    def with_rates(self, rates: RatesRecord) -> RunRecord:
        """The same run on a machine whose rates are known."""
        return msgspec.structs.replace(self, rates=rates)


class CellRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn of one engine. ``order``: its turn within the round; ``seconds``: of the whole;
    ``prefill_seconds``: of the same prompts with one new token each. Of the ``judged`` requests,
    ``equal`` have the verifier's own tokens, ``near_ties`` among them those that chose otherwise at
    a near-tie at least once. ``idle_cores``: what the other engines used meanwhile. ``sitting``:
    the number of the command that measured it; a run that was taken up has several. ``rates``: what
    the machine reached right before and after it, None if that is not known.
    """

    pair: str
    workload: str
    concurrency: int
    round: int
    order: int
    engine: str
    version: str | None
    tokens: int
    seconds: float
    prefill_seconds: float | None
    judged: int
    equal: int
    near_ties: int
    idle_cores: float
    sitting: int
    speculation: dict[str, int] | None = None
    rates: RatesRecord | None = None

    @property
    def rate(self) -> float:
        """Output tokens/s, prefill included."""
        return self.tokens / self.seconds

    def decode_rate(self) -> float | None:
        """Output tokens/s after the first token of each request; None where that is not known."""
        if self.prefill_seconds is None or self.seconds <= self.prefill_seconds:
            return None
        return (self.tokens - self.concurrency) / (self.seconds - self.prefill_seconds)


class FailureRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An engine that did not take part, from a point on, or in one cell; and why."""

    pair: str
    engine: str
    reason: str
    workload: str | None = None
    concurrency: int | None = None
    round: int | None = None


class PeersFolder:
    """The records in one folder. Methods raise PeersError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / RUN).exists()

    def begin(self, run: RunRecord) -> None:
        """A new run; what is left of an earlier one is deleted."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in (CELLS, FAILURES):
                (self.path / name).unlink(missing_ok=True)
            self._write_run(run)
        except OSError as error:
            raise PeersError(f"{self.path}: {error.strerror}") from error

    def reached(self, rates: RatesRecord) -> None:
        """What the machine reaches now; of all that is told here the best counts, since bounds are
        of what it can do at its best."""
        run = self.run()
        best = rates if run.rates is None else run.rates.best(rates)
        try:
            self._write_run(run.with_rates(best))
        except OSError as error:
            raise PeersError(f"{self.path}: {error.strerror}") from error

    def _write_run(self, run: RunRecord) -> None:
        beside = self.path / f".{RUN}.new"
        beside.write_bytes(msgspec.json.format(msgspec.json.encode(run)) + b"\n")
        beside.replace(self.path / RUN)

    def run(self) -> RunRecord:
        """What is measured here."""
        try:
            run = msgspec.json.decode((self.path / RUN).read_bytes(), type=RunRecord)
        except OSError as error:
            raise PeersError(f"{self.path} holds no comparison of peers: {error}") from error
        except msgspec.DecodeError as error:
            raise PeersError(f"{self.path / RUN}: {error}") from error
        if run.schema_version != SCHEMA_VERSION:
            raise PeersError(
                f"{self.path}: schema version {run.schema_version}, and this program reads "
                f"{SCHEMA_VERSION}; choose another folder"
            )
        return run

    def cells(self) -> list[CellRecord]:
        """In the order in which they were measured."""
        return list(self._lines(CELLS, CellRecord))

    def failures(self) -> list[FailureRecord]:
        """In the order in which they happened."""
        return list(self._lines(FAILURES, FailureRecord))

    def add(self, cell: CellRecord) -> None:
        """A turn that is done."""
        self._append(CELLS, cell)

    def add_failure(self, failure: FailureRecord) -> None:
        """A turn that is not to be had."""
        self._append(FAILURES, failure)

    def take_up(self, run: RunRecord) -> None:
        """Goes on with the run that is here: the number of rounds and the engines may differ, and
        what failed is tried again. Raises PeersError if anything else differs, which could not be
        compared."""
        before = self.run()
        for name in ("versions", "source", "machine"):
            if before.environment.get(name) != run.environment.get(name):
                raise PeersError(
                    f"{self.path} holds a comparison with another {name.removesuffix('s')}; choose "
                    "another folder, or --restart"
                )
        for name in ("seed", "threads", "draft_tokens", "pairs", "workloads", "concurrencies"):
            if getattr(before, name) != getattr(run, name):
                raise PeersError(
                    f"{self.path} holds a comparison with other {name.replace('_', ' ')}; choose "
                    "another folder, or --restart"
                )
        engines = list(dict.fromkeys([*before.engines, *run.engines]))
        try:
            self._mend()
            (self.path / FAILURES).unlink(missing_ok=True)
            self._write_run(msgspec.structs.replace(before, rounds=run.rounds, engines=engines))
        except OSError as error:
            raise PeersError(f"{self.path}: {error.strerror}") from error

    def _append(self, name: str, record: msgspec.Struct) -> None:
        path = self.path / name
        try:
            with path.open("ab") as file:
                file.write(msgspec.json.encode(record) + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise PeersError(f"{path}: {error.strerror}") from error

    def _mend(self) -> None:
        """Takes away a last line that was cut off."""
        path = self.path / CELLS
        if path.exists():
            content = path.read_bytes()
            os.truncate(path, content.rfind(b"\n") + 1)

    def _lines(self, name: str, kind: type[_Record]) -> Iterator[_Record]:
        path = self.path / name
        if not path.exists():
            return
        *lines, _cut_off = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                yield msgspec.json.decode(line, type=kind)
            except msgspec.DecodeError as error:
                raise PeersError(f"{path}, line {number}: {error}") from error
