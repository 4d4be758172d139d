"""From a plan to records: engines started in their environments, one pair after the other."""

from __future__ import annotations

import datetime
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from bench.peers.comparison import Comparison, Say, log_path
from bench.peers.engine import Engine, program_command
from bench.peers.environments import python_of
from bench.peers.errors import PeersError
from bench.peers.pairs import Pair
from bench.peers.plan import Choice, Plan
from bench.peers.programs import judge
from bench.peers.programs.peer import Setting
from bench.peers.records import (
    SCHEMA_VERSION,
    PairRecord,
    PeersFolder,
    RatesRecord,
    RunRecord,
    Shape,
)
from bench.peers.registry import peers
from bench.roofline import ModelCost
from bench.roofline.machine import MachineProbe, MachineRates
from bench.sweep.environment import command_line, environment
from bench.sweep.errors import PlanError
from bench.sweep.pairs import fingerprint
from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.errors import ModelError


class Measurement:
    """From a plan to records."""

    def __init__(self, plan: Plan, results: PeersFolder, folder: Path, url: str, say: Say) -> None:
        self._plan = plan
        self._results = results
        self._folder = folder
        self._url = url
        self._say = say

    def run(self, pairs: list[Pair], restart: bool, budget: float | None) -> None:
        """Every pair after the other. Raises PeersError."""
        started = time.monotonic()
        self._begin(pairs, restart)
        with MachineProbe(self._plan.threads) as probe:
            self._reached(probe.first)
            for number, pair in enumerate(pairs, 1):
                deadline = None if budget is None else started + budget * number / len(pairs)
                with Comparison(
                    self._plan,
                    pair,
                    self._results,
                    lambda choice, pair=pair: self._engine(pair, choice),  # type: ignore[misc]
                    lambda pair=pair: self._judge(pair),  # type: ignore[misc]
                    self._say,
                    lambda: _record(probe.now()),
                ) as comparison:
                    comparison.run(deadline)
                self._reached(probe.now())

    def _begin(self, pairs: list[Pair], restart: bool) -> None:
        plan = self._plan
        run = RunRecord(
            schema_version=SCHEMA_VERSION,
            started=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            command=command_line(sys.argv),
            environment=environment(),
            seed=plan.seed,
            threads=plan.threads,
            draft_tokens=plan.draft_tokens,
            engines=[choice.name for choice in plan.engines],
            pairs=[_pair_record(pair) for pair in pairs],
            workloads=list(plan.workloads),
            concurrencies=list(plan.concurrencies),
            rounds=list(plan.rounds),
        )
        if self._results.exists and not restart:
            self._results.take_up(run)
        else:
            self._results.begin(run)

    def _reached(self, rates: MachineRates | None) -> None:
        record = _record(rates)
        if record is not None:
            self._results.reached(record)

    def _engine(self, pair: Pair, choice: Choice) -> Engine:
        program, peer = peers()[choice.peer]
        python = python_of(peer, self._folder)
        converted = pair.converted / peer.name
        converted.mkdir(parents=True, exist_ok=True)
        places = {
            "threads": str(self._plan.threads),
            "cores": ",".join(map(str, sorted(os.sched_getaffinity(0))[: self._plan.threads])),
            "environment": str(self._folder / peer.name),
            "folder": str(converted),
        }
        variables = {name: text.format(**places) for name, text in peer.variables.items()}
        if peer.requirements:
            variables["PYTHONPATH"] = ""  # of our packages, which are not its own
        return self._loaded(pair, choice.name, python, program, variables, choice.mode, converted)

    def _judge(self, pair: Pair) -> Engine:
        module = judge.__name__.rpartition(".")[2]
        return self._loaded(pair, "judge", sys.executable, module, {}, "judge", pair.converted)

    def _loaded(
        self,
        pair: Pair,
        name: str,
        python: str,
        program: str,
        variables: dict[str, str],
        mode: str,
        converted: Path,
    ) -> Engine:
        log = log_path(self._results.path, pair, name)
        engine = Engine(program_command(python, program), variables, log)
        setting = Setting(
            model=str(pair.verifier),
            draft=str(pair.draft),
            mode=mode,
            threads=self._plan.threads,
            concurrency=max(self._plan.concurrencies),
            context=self._plan.context,
            draft_tokens=self._plan.draft_tokens,
            folder=str(converted),
            url=self._url,
        )
        try:
            engine.load(setting, self._plan.limits.load)
        except BaseException:
            engine.close()
            raise
        return engine


def _record(rates: MachineRates | None) -> RatesRecord | None:
    return None if rates is None else RatesRecord(**asdict(rates))


def _pair_record(pair: Pair) -> PairRecord:
    try:
        return PairRecord(
            pair.name,
            fingerprint(pair.verifier),
            fingerprint(pair.draft),
            _shape(pair.verifier),
            _shape(pair.draft),
        )
    except (ModelError, PlanError) as error:
        raise PeersError(str(error)) from error


def _shape(folder: Path) -> Shape:
    return Shape(**asdict(ModelCost.of(ModelConfig.from_folder(folder))))
