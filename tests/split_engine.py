"""A scheduler's worker and its lanes in one process, joined by queues of encoded frames.

Who acts next is drawn at random, so that messages wait, cross and arrive in every order that
separate processes could bring about. Lanes die as well, before or after the batch that they work
on has written its KV, and come back some time later.
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
from engine_driver import WatchedWorker, engine_config

from pdv_mp.config import EngineConfig
from pdv_mp.lanes.lane import DraftLane, Lane, PrefillLane
from pdv_mp.resources import Resources, build_resources
from pdv_mp.speculation.rules import acceptance_rule
from pdv_mp.stages.draft import DraftStage
from pdv_mp.stages.prefill import PrefillStage
from pdv_mp.wire import stages as wire


class SplitWorker(WatchedWorker):
    """``stages`` are hosted by lanes; ``death_probability``: of some lane, in each step."""

    def __init__(
        self,
        resources: Resources,
        config: EngineConfig,
        stages: tuple[str, ...],
        rng: np.random.Generator,
        death_probability: float,
    ) -> None:
        super().__init__(resources, config, {stage: partial(self._send, stage) for stage in stages})
        self._rng = rng
        self._death_probability = death_probability
        self._shared = resources
        self._lane_of: dict[str, Lane | None] = dict.fromkeys(stages)
        self._generation = dict.fromkeys(stages, 0)
        self._to: dict[str, deque[bytes]] = {stage: deque() for stage in stages}
        self._back: dict[str, deque[bytes]] = {stage: deque() for stage in stages}
        self.deaths = dict.fromkeys(stages, 0)
        self.messages = 0

    def _send(self, stage: str, message: wire.StageMessage) -> None:
        self._to[stage].append(bytes(wire.encode(message, self._generation[stage])))

    def _make_lane(self, stage: str) -> Lane:
        resources, config = self._shared, self._config
        if stage == "draft":
            assert resources.draft is not None
            rule = acceptance_rule(config.speculation.acceptance)
            return DraftLane(DraftStage(resources.draft, rule, resources.num_slots))
        prefill = PrefillStage(
            resources.target, resources.draft, resources.num_slots, resources.max_model_len
        )
        return PrefillLane(prefill, config.scheduling.max_num_batched_tokens, resources.num_slots)

    def step(self) -> bool:
        if self._rng.random() < self._death_probability:
            self._kill(str(self._rng.choice(list(self._lane_of))))
        actions = [super().step]
        for stage in self._lane_of:
            actions += [
                partial(self._revive, stage),
                partial(self._deliver, stage),
                partial(self._run_lane, stage),
                partial(self._take_result, stage),
            ]
        progressed = any(actions[index]() for index in self._rng.permutation(len(actions)))
        return progressed or any(self._to.values()) or any(self._back.values())

    def _revive(self, stage: str) -> bool:
        if self._lane_of[stage] is not None:
            return False
        self._lane_of[stage] = self._make_lane(stage)
        self._answer(stage, wire.LaneReady(facts={}))
        return True

    def _answer(self, stage: str, message: wire.StageMessage) -> None:
        self._back[stage].append(bytes(wire.encode(message, self._generation[stage])))

    def _deliver(self, stage: str) -> bool:
        lane = self._lane_of[stage]
        if lane is None or not self._to[stage]:
            return False
        message, _ = wire.decode(self._to[stage].popleft(), time.monotonic_ns())
        for answer in lane.take(message):
            self._answer(stage, answer)
        return True

    def _run_lane(self, stage: str) -> bool:
        lane = self._lane_of[stage]
        result = None if lane is None else lane.step(lambda slots: None)
        if result is None:
            return False
        self._answer(stage, result)
        return True

    def _take_result(self, stage: str) -> bool:
        if not self._back[stage]:
            return False
        message, generation = wire.decode(self._back[stage].popleft(), time.monotonic_ns())
        assert generation == self._generation[stage]
        self.messages += 1
        self.take(stage, message)
        return True

    def _kill(self, stage: str) -> None:
        lane = self._lane_of[stage]
        if lane is None:
            return
        while self._take_result(stage):
            pass
        if self._rng.random() < 0.5:
            lost: list[int] = []
            lane.step(lost.extend)  # its rows are written, its result is lost
            for watcher in self._watchers:
                watcher.lost(lost)
        self._to[stage].clear()
        self._generation[stage] += 1
        self._lane_of[stage] = None
        self.deaths[stage] += 1
        self.lane_died(stage, [])


def make_split(
    folder: Path,
    draft: Path | None,
    stages: tuple[str, ...],
    rng: np.random.Generator,
    death_probability: float = 0.0,
    **options: object,
) -> SplitWorker:
    """A split engine on models in local folders."""
    config = engine_config(folder, draft, **options)
    return SplitWorker(build_resources(config), config, stages, rng, death_probability)
