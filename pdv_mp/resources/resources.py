"""What a process computes with: models, caches, and the facts decided at start-up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pdv_mp.config import EngineConfig
from pdv_mp.control import ControlClient
from pdv_mp.emulation.emulator import Emulator
from pdv_mp.graphs.capture import CudaCapture
from pdv_mp.graphs.graph_steps import GraphSteps
from pdv_mp.memory.attention_plan import AttentionPlan
from pdv_mp.memory.huge_pages import huge_buffer
from pdv_mp.memory.kv_cache import KVCache
from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.model.language_model import Drafter, GreedyVerifier, LanguageModel
from pdv_mp.model.linear import can_pack
from pdv_mp.model.loading import load_weights, random_weights
from pdv_mp.model.native.native_transformer import NativeTransformer
from pdv_mp.model.native.panels import fill_panels
from pdv_mp.model.shape import ModelShape
from pdv_mp.model.transformer import Transformer
from pdv_mp.model.transformers_config import TransformersConfig
from pdv_mp.model.weights import Manifest, Weights
from pdv_mp.resources.attachment import Attachment, attach
from pdv_mp.resources.planned_caches import attached_cache, kv_names, private_cache
from pdv_mp.resources.resource_plan import (
    DRAFT,
    TARGET,
    PlannedModel,
    ResourcePlan,
    make_plan,
    planned_kv_budget,
)
from pdv_mp.scheduling.pools import Pools
from pdv_mp.speculation.acceptance import AcceptanceRule
from pdv_mp.speculation.rules import acceptance_rule
from pdv_mp.speculation.sampling import Sampler, sample
from pdv_mp.topology import Worker
from pdv_mp.wire.control import SupervisorMessage


@dataclass(frozen=True, slots=True)
class ModelRunner:
    """A model bound to its cache on one device.

    ``vocab_size``: ids that both models of a pair know; logits of others are cut off. ``steps``:
    recordings of what is computed again and again, on a GPU. ``drafter``, ``verifier``: the model,
    if it drafts several tokens in one call, or judges drafts in it.
    """

    name: str
    vocab_size: int
    config: ModelShape
    transformer: LanguageModel
    cache: KVCache
    device: torch.device
    steps: GraphSteps | None = None
    drafter: Drafter | None = None
    verifier: GreedyVerifier | None = None

    def plan(self, batch: ForwardBatch) -> AttentionPlan | None:
        """A plan for :meth:`forward`; None where it makes its own."""
        if self.steps is not None or not self.transformer.uses_plan:
            return None
        return self.cache.plan(batch)

    def forward(self, batch: ForwardBatch, plan: AttentionPlan | None = None) -> torch.Tensor:
        """Logits [len(batch.logit_rows), vocab_size] float32; the rows' KV is written.

        ``plan``: what the cache planned for the batch, if it did so already.
        """
        if self.steps is not None:
            recorded = self.steps.forward(batch)
            if recorded is not None:
                return recorded
        logits = self.transformer.forward(batch, self.cache, plan)
        return logits if logits.shape[1] == self.vocab_size else logits[:, : self.vocab_size]


@dataclass(frozen=True)
class Resources:
    """All that the stages of one process share.

    ``runners`` and ``caches`` by role: what this process computes with, and whose KV it can reach.
    A process with a scheduler has the caches of both models, whatever it computes. ``pools_pid``:
    the process that the memory comes from, None if it is this one. ``emulator``: what stands for
    the models' arithmetic on an emulated device.
    """

    plan: ResourcePlan
    num_blocks: int
    runners: Mapping[str, ModelRunner]
    caches: Mapping[str, KVCache]
    pools_pid: int | None = None
    emulator: Emulator | None = None

    def rule(self, config: EngineConfig) -> AcceptanceRule:
        """What decides which drafts are kept."""
        if self.emulator is not None:
            return self.emulator.tokens
        return acceptance_rule(config.speculation.acceptance)

    @property
    def sampler(self) -> Sampler:
        """What chooses the token that no draft proposes."""
        return sample if self.emulator is None else self.emulator.tokens.sample

    def close(self) -> None:
        """The process is about to end."""
        if self.emulator is not None:
            self.emulator.close()

    @property
    def target(self) -> ModelRunner:
        """The verifier. Raises RuntimeError in a process that only drafts."""
        if TARGET not in self.runners:
            raise RuntimeError("this process does not compute the verifier")
        return self.runners[TARGET]

    @property
    def draft(self) -> ModelRunner | None:
        """The draft model, None where this process does not compute one."""
        return self.runners.get(DRAFT)

    @property
    def prefill_target(self) -> ModelRunner:
        """What computes prompts in the verifier. Raises RuntimeError as :attr:`target` does."""
        return self._prefills(TARGET, self.target)

    @property
    def prefill_draft(self) -> ModelRunner | None:
        """What computes prompts in the draft model, None where this process does not."""
        return None if self.draft is None else self._prefills(DRAFT, self.draft)

    def _prefills(self, role: str, runner: ModelRunner) -> ModelRunner:
        if self.emulator is None:
            return runner
        return replace(runner, transformer=self.emulator.model(role, "prefill"))

    @property
    def has_draft(self) -> bool:
        """Whether the server has a draft model, in this process or in another."""
        return self.plan.model(DRAFT) is not None

    @property
    def num_slots(self) -> int:
        """Sequences of a replica that may have KV at once."""
        return self.plan.num_slots

    @property
    def max_model_len(self) -> int:
        """Most tokens of a sequence."""
        return self.plan.max_model_len

    @cached_property
    def pools(self) -> Pools:
        """The one account of slots and blocks of the replica; made when it is first asked for.

        All KV that was there before is forgotten. Raises RuntimeError where another process has it.
        """
        if len(self.caches) < len(self.plan.models):
            raise RuntimeError("the account of KV blocks lives in the process with the scheduler")
        caches = [self.caches[model.role] for model in self.plan.models]
        for cache in caches:
            cache.reset()
        budget = self.num_blocks * self.plan.block_bytes
        return Pools(self.num_slots, self.num_blocks, self.plan.block_size, caches, budget)

    def facts(self, config: EngineConfig) -> dict[str, Any]:
        """What other processes need to know of this one; see wire.engine.EngineReady."""
        plan = self.plan
        draft = plan.model(DRAFT)
        emulated = {}
        if plan.emulated is not None:
            emulated = {"emulated": plan.emulated.name, "costs": plan.emulated.digest}
        return {
            **emulated,
            "fingerprint": config.fingerprint,
            "vocab_size": plan.vocab_size,
            "eos_ids": list(plan.target.config.eos_token_ids),
            "max_model_len": plan.max_model_len,
            "max_request_tokens": min(plan.max_model_len, self.num_blocks * plan.block_size),
            "credits": plan.num_slots,
            "model": plan.target.name,
            "draft_model": draft.name if draft else None,
            "device": f"emulated:{plan.emulated.name}" if plan.emulated else str(plan.device),
            "dtype": str(plan.dtype).removeprefix("torch."),
            "kernels": "torch" if plan.kernels is None else "native",
            "kv_blocks": self.num_blocks,
            "block_size": plan.block_size,
        }


Fill = Callable[[str, Weights], None]
"""Fills the weights of the model with a role."""


def build_resources(
    config: EngineConfig,
    fill: Fill | None = None,
    progress: Callable[[str], None] | None = None,
) -> Resources:
    """Load the models and make the pools that a configuration asks for, for this process alone.

    ``fill``: where the weights come from, if not from the models' folders. ``progress`` is told of
    what takes long. Raises ConfigError when
    the KV budget cannot hold even one block, ModelError for a checkpoint that cannot be served.
    """
    plan = make_plan(config, progress)
    if plan.emulated is not None:
        num_blocks = plan.count_blocks(planned_kv_budget(config, plan))
        return _emulated(config, plan, plan.models, plan.models, num_blocks)
    transformers = {model.role: _load(config, plan, model, fill) for model in plan.models}
    num_blocks = plan.count_blocks(planned_kv_budget(config, plan))
    caches = {model.role: private_cache(plan, model, num_blocks) for model in plan.models}
    return Resources(plan, num_blocks, _runners(config, plan, transformers, caches), caches)


def attach_resources(
    config: EngineConfig,
    run_dir: Path,
    process_name: str,
    control: ControlClient,
    on_message: Callable[[SupervisorMessage], None],
) -> Resources | None:
    """Map what the stages of a worker process need of the memory that the pools process owns.

    Waits until it is loaded; meanwhile the supervisor's messages other than Stop go to
    ``on_message``. None when the supervisor says Stop. Raises ConfigError when the pools process
    refuses, or when this system does not let processes share memory.
    """
    plan = make_plan(config, control.progress)
    worker, replica = plan.topology.place(process_name)
    computed = _models_of(worker, plan, config.handoff.hybrid)
    reached = plan.models if worker.schedules else computed
    buffers = set()
    if plan.emulated is None:
        buffers |= {plan.weights_name(model.role) for model in computed}
    for model in reached:
        buffers |= kv_names(plan, model, replica, worker.schedules)
    attachment = attach(
        run_dir,
        process_name,
        config.fingerprint,
        sorted(buffers),
        plan.device,
        control,
        on_message,
    )
    if attachment is None:
        return None
    if plan.emulated is not None:
        return _emulated(
            config,
            plan,
            computed,
            reached,
            attachment.num_blocks,
            run_dir,
            process_name,
            attachment,
        )
    transformers = {model.role: _mapped(plan, model, attachment) for model in computed}
    caches = {
        model.role: attached_cache(plan, model, attachment, replica, held=model in computed)
        for model in reached
    }
    runners = _runners(config, plan, transformers, caches)
    return Resources(plan, attachment.num_blocks, runners, caches, attachment.pools_pid)


def _emulated(
    config: EngineConfig,
    plan: ResourcePlan,
    computed: tuple[PlannedModel, ...],
    reached: tuple[PlannedModel, ...],
    num_blocks: int,
    run_dir: Path | None = None,
    process: str | None = None,
    attachment: Attachment | None = None,
) -> Resources:
    """The resources of a process on an emulated device: only accounts and clocks."""
    if plan.emulated is None:
        raise RuntimeError("the device is not emulated")
    emulator = Emulator(
        plan.emulated,
        config,
        plan.topology,
        plan.vocab_size,
        plan.target.config.eos_token_ids,
        run_dir,
        process,
    )
    caches = {model.role: private_cache(plan, model, num_blocks) for model in reached}
    models = {
        model.role: emulator.model(model.role, "draft" if model.role == DRAFT else "verify")
        for model in computed
    }
    runners = _runners(config, plan, models, caches)
    pools_pid = None if attachment is None else attachment.pools_pid
    return Resources(plan, num_blocks, runners, caches, pools_pid, emulator)


def load_into(
    config: EngineConfig, plan: ResourcePlan, model: PlannedModel, buffer: torch.Tensor
) -> None:
    """Fill a buffer (uint8, on the plan's device) with the weights of a model.

    Raises ModelError for a checkpoint that cannot be served, ConfigError for a model whose weights
    have no such form.
    """
    shape = plan.shareable(model)
    if plan.kernels is None:
        _own_weights(config, plan, shape, model.folder, buffer)
    else:
        weights = _own_weights(config, plan, shape, model.folder)
        fill_panels(shape, weights, Weights(plan.manifest(model), buffer), plan.kernels.lanes)


def _own_weights(
    config: EngineConfig,
    plan: ResourcePlan,
    shape: ModelConfig,
    folder: Path,
    into: torch.Tensor | None = None,
) -> Weights:
    if config.model.load_format == "dummy":
        return random_weights(shape, plan.dtype, plan.device, seed=0, into=into)
    return load_weights(shape, folder, plan.dtype, plan.device, into)


def _load(
    config: EngineConfig, plan: ResourcePlan, model: PlannedModel, fill: Fill | None
) -> LanguageModel:
    """A model with weights of its own."""
    if isinstance(model.config, TransformersConfig):
        # Imported where it is needed: transformers takes seconds.
        from pdv_mp.model.transformers_loading import load_transformers_model

        return load_transformers_model(
            model.config,
            model.folder,
            plan.dtype,
            plan.device,
            plan.max_model_len,
            dummy=config.model.load_format == "dummy",
        )
    shape = plan.shareable(model)
    if fill is None:
        weights = _own_weights(config, plan, shape, model.folder)
    else:
        manifest = Manifest.build(shape, plan.dtype)
        buffer = torch.empty(manifest.nbytes, dtype=torch.uint8, device=plan.device)
        weights = Weights(manifest, buffer)
        fill(model.role, weights)
    if plan.kernels is not None:
        manifest = plan.manifest(model)
        panels = Weights(manifest, huge_buffer(manifest.nbytes))
        fill_panels(shape, weights, panels, plan.kernels.lanes)
        return _own_model(plan, shape, panels, pack=False)
    return _own_model(plan, shape, weights, pack=can_pack(plan.dtype, plan.device))


def _own_model(
    plan: ResourcePlan, shape: ModelConfig, weights: Weights, *, pack: bool
) -> LanguageModel:
    if plan.kernels is not None:
        return NativeTransformer(shape, weights, plan.max_model_len, plan.kernels)
    if plan.attention == "triton":
        from pdv_mp.model.triton_transformer import TritonTransformer

        return TritonTransformer(shape, weights, plan.max_model_len)
    return Transformer(shape, weights, plan.max_model_len, pack=pack)


def _mapped(plan: ResourcePlan, model: PlannedModel, attachment: Attachment) -> LanguageModel:
    """A model on weights that the pools process has loaded."""
    shape = plan.shareable(model)
    weights = Weights(plan.manifest(model), attachment.tensor(plan.weights_name(model.role)))
    return _own_model(plan, shape, weights, pack=False)


def _models_of(worker: Worker, plan: ResourcePlan, hybrid: bool) -> tuple[PlannedModel, ...]:
    """The models that the stages of a worker compute; in a hybrid the verifier's drafts as well."""
    roles = {DRAFT} if hybrid and worker.schedules else set()
    if "prefill" in worker.stages:
        roles |= {TARGET, DRAFT}
    if "draft" in worker.stages:
        roles.add(DRAFT)
    if "verify" in worker.stages:
        roles.add(TARGET)
    return tuple(model for model in plan.models if model.role in roles)


def _runners(
    config: EngineConfig,
    plan: ResourcePlan,
    transformers: Mapping[str, LanguageModel],
    caches: Mapping[str, KVCache],
) -> dict[str, ModelRunner]:
    runners = {}
    for model in plan.models:
        transformer = transformers.get(model.role)
        if transformer is not None:
            runners[model.role] = ModelRunner(
                model.name,
                plan.vocab_size,
                model.config,
                transformer,
                caches[model.role],
                plan.device,
                _graph_steps(config, plan, transformer, caches[model.role]),
                transformer if isinstance(transformer, Drafter) else None,
                transformer if isinstance(transformer, GreedyVerifier) else None,
            )
    return runners


def _graph_steps(
    config: EngineConfig, plan: ResourcePlan, model: LanguageModel, cache: KVCache
) -> GraphSteps | None:
    """Recorded steps, where the kernels are those that depend on no value of a batch."""
    wanted = config.model.cuda_graphs == "auto" and plan.device.type == "cuda"
    if not wanted or plan.attention != "triton" or not isinstance(cache, PagedKVCache):
        return None
    if any(isinstance(planned.config, TransformersConfig) for planned in plan.models):
        return None
    return GraphSteps(model, cache, plan.vocab_size, CudaCapture(plan.device))
