"""A scheduler's worker and its lanes in one process, joined by queues of encoded frames.

Who acts next is drawn at random, so that messages wait, cross and arrive in every order that
separate processes could bring about. Lanes die as well, before or after the batch that they work
on has written its KV, and come back some time later. With ``kv_handoff`` copy or handle each lane
has caches of its own, which die with it.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from engine_driver import WatchedWorker, engine_config

from pdv_mp.config import EngineConfig
from pdv_mp.lanes.lane import DraftLane, Lane, PrefillLane
from pdv_mp.memory.contiguous_kv_cache import ContiguousKVCache
from pdv_mp.memory.kv_cache import KVCache
from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.resources.kv_handoff import KVReceiver, KVSender, make_sender
from pdv_mp.resources.planned_caches import lane_cache
from pdv_mp.resources.resource_plan import DRAFT, TARGET
from pdv_mp.resources.resources import Resources, build_resources
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
        self.lost_rows = 0
        self._senders: dict[str, KVSender] = {}
        self._own_caches: dict[str, list[KVCache]] = {stage: [] for stage in stages}

    def _send(self, stage: str, message: wire.StageMessage) -> None:
        self._to[stage].append(bytes(wire.encode(message, self._generation[stage])))

    def _make_lane(self, stage: str) -> Lane:
        resources, config = self._resources_of(stage), self._config
        if stage == "draft":
            assert resources.draft is not None
            rule = acceptance_rule(config.speculation.acceptance)
            receiver = KVReceiver(resources.caches, resources.num_blocks)
            return DraftLane(
                DraftStage(resources.draft, rule, resources.num_slots),
                receiver=receiver,
                ahead=config.handoff.draft_ahead,
            )
        prefill = PrefillStage(
            resources.target, resources.draft, resources.num_slots, resources.max_model_len
        )
        sender = make_sender(resources.plan, resources.caches, resources.num_blocks)
        if sender is not None:
            self._senders[stage] = sender
        return PrefillLane(
            prefill,
            config.scheduling.max_num_batched_tokens,
            resources.num_slots,
            sender=sender,
        )

    def _resources_of(self, stage: str) -> Resources:
        """What a new lane computes with: the models of all, and its own caches if it has any."""
        shared = self._shared
        plan = shared.plan
        if not plan.private_caches:
            return shared
        roles = [DRAFT] if stage == "draft" else [TARGET, DRAFT]
        caches = {}
        for model in plan.models:
            if model.role in roles:
                cache = shared.caches[model.role]
                table = None
                if isinstance(cache, PagedKVCache):
                    table = torch.from_numpy(cache.block_table).view(torch.uint8).flatten()
                caches[model.role] = lane_cache(plan, model, shared.num_blocks, table, held=True)
        self._own_caches[stage] = list(caches.values())
        runners = {
            role: dataclasses.replace(shared.runners[role], cache=cache)
            for role, cache in caches.items()
        }
        return Resources(plan, shared.num_blocks, runners, caches)

    def take(self, stage: str, message: wire.StageMessage) -> None:
        before = self.table.draft_len.copy()
        super().take(stage, message)
        self._notice_losses(before)

    def lane_died(self, stage: str, slots: Iterable[int]) -> None:
        before = self.table.draft_len.copy()
        if stage == "draft" and self._shared.plan.private_caches:
            # Also those that the lane was computing again, and had told us of.
            prompts = [s.slot for s in self.scheduler._prompts()]
            before[np.setdiff1d(np.arange(len(before)), prompts)] = 1
        super().lane_died(stage, slots)
        self._notice_losses(before)

    def _notice_losses(self, before: np.ndarray) -> None:
        """The engine knows that the draft must compute some texts again."""
        lost = np.flatnonzero((before > 0) & (self.table.draft_len == 0))
        self.lost_rows += len(lost)
        for watcher in self._watchers[1:]:
            watcher.lost(lost)

    @property
    def num_buffers(self) -> int:
        """Buffers with KV that have been handed on and not been released."""
        return sum(sender.num_buffers for sender in self._senders.values())

    def step(self) -> bool:
        if self._rng.random() < self._death_probability:
            self._kill(str(self._rng.choice(list(self._lane_of))))
        actions = [super().step]
        for stage in self._lane_of:
            actions += [
                partial(self._revive, stage),
                partial(self._deliver, stage),
                partial(self._run_lane, stage),
                partial(self._run_ahead, stage),
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
        result = (
            None
            if lane is None
            else lane.step(self._check_owners if stage == "prefill" else _nothing)
        )
        if result is None:
            return False
        self._answer(stage, result)
        return True

    def _check_owners(self, slots: list[int]) -> None:
        """No prompt goes into a slot to which the draft lane may still write."""
        draft = self._lane_of.get("draft")
        if isinstance(draft, DraftLane) and draft._stage._ahead is not None:
            assert not set(slots) & set(draft._stage._ahead.slots.tolist())

    def _run_ahead(self, stage: str) -> bool:
        lane = self._lane_of[stage]
        return lane is not None and lane.run_ahead()

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
        if self._rng.random() < 0.5:
            lane.close()  # what it has handed on is gone before anybody has read it
        while self._take_result(stage):
            pass
        if self._rng.random() < 0.5:
            lost: list[int] = []
            lane.step(lost.extend)  # its rows are written, its result is lost
            for watcher in self._watchers:
                watcher.lost(np.array(lost, np.int64))
        self._to[stage].clear()
        self._generation[stage] += 1
        self._lane_of[stage] = None
        lane.close()
        for cache in self._own_caches[stage]:
            if isinstance(cache, ContiguousKVCache):
                cache.close()
        self.deaths[stage] += 1
        self.lane_died(stage, [])


def _nothing(slots: list[int]) -> None:
    """Nothing is to be done before a batch."""


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
