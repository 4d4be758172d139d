"""What a server needs memory for, by name and size: made from the configuration alone."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pdv_mp.config import CacheOptions, ConfigError, EngineConfig
from pdv_mp.emulation.cost_table import CostTable
from pdv_mp.emulation.device_name import is_emulated
from pdv_mp.emulation.planning import (
    LABEL,
    device_numbers,
    emulated_shape,
    kv_bytes,
    table_of,
)
from pdv_mp.memory.blocks import blocks_for
from pdv_mp.memory.kv_layout import ContiguousLayout, PagedLayout
from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.implementation import read_model
from pdv_mp.model.native.library import NativeError, NativeLibrary, native_library
from pdv_mp.model.native.panels import panel_manifest
from pdv_mp.model.shape import ModelShape
from pdv_mp.model.transformers_config import TransformersConfig
from pdv_mp.model.weights import Manifest
from pdv_mp.topology import Topology, scheduling_of, topology_of

logger = logging.getLogger(__name__)

DEFAULT_CPU_KV_BYTES = 1 << 30

CUDA_CONTEXT_BYTES = 1 << 29
"""What a process takes of a GPU before it has allocated anything, about."""

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

TARGET = "target"
"""Role of the verifier's model."""

DRAFT = "draft"
"""Role of the draft model."""

POOL = "pool"
"""The ``--kv-handoff`` under which all workers map the same KV."""

PRIVATE_COPIES = 2
"""How many workers have memory for the KV of a model where it is private: the one that computes
prompts, and the one that goes on."""


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model of the pair: its role, the name that clients know, its folder and its shape."""

    role: str
    name: str
    folder: Path
    config: ModelShape


@dataclass(frozen=True, slots=True)
class BufferPlan:
    """A buffer that processes share; ``on_device``: on that of the models, not on the host."""

    name: str
    nbytes: int
    on_device: bool = True


@dataclass(frozen=True, slots=True)
class ResourcePlan:
    """The models of a server, the verifier first, and the layout of their weights and KV.

    ``layout``: ``contiguous``, ``paged``, or ``account``, which takes no memory. ``attention``:
    ``triton`` or ``sdpa``. ``num_slots``: of one replica. ``kv_handoff``: ``pool``, ``copy`` or
    ``handle``. ``emulated``: the costs of the device, where it is an emulated one, which has no
    tensors at all. ``kernels``: the compiled ones, where our own models are computed by them.
    ``vocab_size``: ids that both models know. A checkpoint may pad its vocabulary beyond that; such
    ids have no text and the other model could not read them, so they are cut off.
    """

    models: tuple[PlannedModel, ...]
    topology: Topology
    device: torch.device
    dtype: torch.dtype
    num_slots: int
    max_model_len: int
    block_size: int
    layout: str
    prefix_caching: bool
    kv_handoff: str = POOL
    emulated: CostTable | None = None
    attention: str = "sdpa"
    kernels: NativeLibrary | None = None

    @property
    def private_caches(self) -> bool:
        """Whether each worker has KV memory of its own."""
        return self.kv_handoff != POOL

    @property
    def vocab_size(self) -> int:
        """Ids that both models know."""
        return min(model.config.vocab_size for model in self.models)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block in the caches of all models together."""
        tokens = sum(model.config.kv_bytes_per_token(self.dtype) for model in self.models)
        return self.block_size * tokens

    @property
    def target(self) -> PlannedModel:
        """The verifier."""
        return self.models[0]

    def model(self, role: str) -> PlannedModel | None:
        """The model with that role, None where the verifier serves alone."""
        return next((model for model in self.models if model.role == role), None)

    def count_blocks(self, budget_bytes: int) -> int:
        """KV blocks of each replica when all of them together may take so many bytes.

        Raises ConfigError when that is not even one.
        """
        replicas = self.topology.replicas
        copies = PRIVATE_COPIES if self.private_caches else 1
        num_blocks = budget_bytes // replicas // copies // self.block_bytes
        if not self.prefix_caching:
            longest = blocks_for(self.max_model_len, self.block_size)
            num_blocks = min(num_blocks, self.num_slots * longest)
        if num_blocks < 1:
            share = f" for each of {replicas} replicas" if replicas > 1 else ""
            share += f", {copies} times" if copies > 1 else ""
            raise ConfigError(
                f"--kv-cache-memory is too small: one block of {self.block_size} tokens takes "
                f"{self.block_bytes} bytes{share}"
            )
        return num_blocks

    def contiguous(self, model: PlannedModel, num_blocks: int) -> ContiguousLayout:
        """The layout of a model's KV in runs."""
        return ContiguousLayout(
            model.config,
            self.num_slots,
            self.max_model_len,
            self.dtype,
            self.block_size,
            num_blocks if self.prefix_caching else 0,
        )

    def paged(self, model: PlannedModel, num_blocks: int) -> PagedLayout:
        """The layout of a model's KV in blocks."""
        return PagedLayout(
            model.config,
            num_blocks,
            self.block_size,
            self.num_slots,
            self.max_model_len,
            self.dtype,
        )

    def shareable(self, model: PlannedModel) -> ModelConfig:
        """The shape of a model whose weights lie in one flat buffer: our own forward pass.

        Raises ConfigError for a model that transformers' modules compute.
        """
        if isinstance(model.config, TransformersConfig):
            raise ConfigError(
                f"--topology {self.topology.name} runs several processes, which cannot share the "
                f"weights of {model.name} because transformers' modules compute it "
                "(--model-impl): use --topology unified"
            )
        if not isinstance(model.config, ModelConfig):
            raise ConfigError(f"an emulated device has no weights of {model.name}")
        return model.config

    def manifest(self, model: PlannedModel) -> Manifest:
        """How a model's weights lie in their buffer: as they are computed with. Raises ConfigError
        as :meth:`shareable` does."""
        shape = self.shareable(model)
        if self.kernels is None:
            return Manifest.build(shape, self.dtype)
        return panel_manifest(shape, self.kernels.lanes)

    def weights_name(self, role: str) -> str:
        """Name of the buffer with a model's weights, which says in what form they are."""
        return f"weights-{role}" if self.kernels is None else f"panels-{role}"

    def weights_buffer(self, model: PlannedModel) -> BufferPlan:
        """The weights of a model, for all workers. Raises ConfigError as :meth:`shareable` does."""
        return BufferPlan(self.weights_name(model.role), self.manifest(model).nbytes)

    def kv_buffers(self, num_blocks: int) -> Iterator[BufferPlan]:
        """The KV of all models, for each replica of its own; of caches that are private, only the
        block tables."""
        if self.emulated is not None:
            return
        for replica in range(self.topology.replicas):
            for model in self.models:
                yield from self._kv_buffers(model, replica, num_blocks)

    def _kv_buffers(
        self, model: PlannedModel, replica: int, num_blocks: int
    ) -> Iterator[BufferPlan]:
        if self.layout == "paged":
            paged = self.paged(model, num_blocks)
            if not self.private_caches:
                yield BufferPlan(kv_name(model.role, replica), paged.pool_bytes)
            yield BufferPlan(table_name(model.role, replica), paged.table_bytes, on_device=False)
            return
        if self.private_caches:
            return
        runs = self.contiguous(model, num_blocks)
        yield BufferPlan(kv_name(model.role, replica), runs.runs_bytes)
        if runs.store_bytes:
            yield BufferPlan(store_name(model.role, replica), runs.store_bytes)


def kv_name(role: str, replica: int) -> str:
    """Name of the buffer with a model's KV of a replica."""
    return f"kv-{role}-{replica}"


def store_name(role: str, replica: int) -> str:
    """Name of the buffer with a model's stored blocks of a replica (contiguous layout)."""
    return f"store-{role}-{replica}"


def table_name(role: str, replica: int) -> str:
    """Name of the buffer with a model's block table of a replica (paged layout)."""
    return f"table-{role}-{replica}"


def make_plan(config: EngineConfig, progress: Callable[[str], None] | None = None) -> ResourcePlan:
    """The plan of a configuration whose model is resolved. ``progress`` is told of what takes long.

    Raises ConfigError for options that contradict each other or this machine, ModelError for a
    checkpoint that cannot be served.
    """
    device = pick_device(config.model.device)
    if config.model.model is None:
        raise ConfigError("--model is not resolved; start the server through pdv-launch")
    emulated = table_of(config)
    folder = Path(config.model.model)
    draft = config.model.draft_model
    if emulated is not None:
        models = _emulated_models(config, emulated, folder)
    else:
        models = [_planned(config, TARGET, folder, config.model.served_model_name)]
        if draft not in (None, "none"):
            models.append(_planned(config, DRAFT, Path(str(draft)), None))
    longest = min(model.config.context_limit for model in models)
    max_model_len = config.model.max_model_len or longest
    for model in models:
        model.config.check_max_model_len(max_model_len)
    layout = config.cache.kv_layout
    if emulated is not None:
        return _emulated_plan(config, emulated, tuple(models), max_model_len)
    if layout == "auto":
        layout = "contiguous" if device.type == "cpu" else "paged"
    if layout == "contiguous" and device.type != "cpu":
        raise ConfigError("--kv-layout contiguous is for a CPU; use paged, or --device cpu")
    dtype = pick_dtype(config.model.dtype, models[0].config, device)
    attention = pick_attention(config.model.attention, device, layout)
    kernels = None
    if attention == "sdpa" and device.type == "cpu" and dtype == torch.float32:
        kernels = pick_kernels(config.model.compile, models, progress)
    return ResourcePlan(
        models=tuple(models),
        topology=topology_of(config),
        device=device,
        dtype=dtype,
        num_slots=scheduling_of(config).max_admitted,
        max_model_len=max_model_len,
        block_size=config.cache.block_size,
        layout=layout,
        prefix_caching=config.cache.enable_prefix_caching and config.cache.kv_handoff == POOL,
        kv_handoff=config.cache.kv_handoff,
        attention=attention,
        kernels=kernels,
    )


def _emulated_models(config: EngineConfig, table: CostTable, folder: Path) -> list[PlannedModel]:
    """The models of a cost table; ``folder`` has the tokenizer."""
    tokenizer = read_model(folder, config.model.model_impl)
    roles = {"target": TARGET}
    if table.has_draft and config.model.draft_model not in (None, "none"):
        roles["draft"] = DRAFT
    return [
        PlannedModel(
            role,
            config.model.served_model_name or LABEL + table.models[name].name
            if role == TARGET
            else LABEL + table.models[name].name,
            folder,
            emulated_shape(table.models[name], tokenizer),
        )
        for name, role in roles.items()
    ]


def _emulated_plan(
    config: EngineConfig, table: CostTable, models: tuple[PlannedModel, ...], max_model_len: int
) -> ResourcePlan:
    dtype = models[0].config.dtype if config.model.dtype == "auto" else config.model.dtype
    return ResourcePlan(
        models=models,
        topology=topology_of(config),
        device=torch.device("cpu"),
        dtype=DTYPES[dtype],
        num_slots=scheduling_of(config).max_admitted,
        max_model_len=max_model_len,
        block_size=config.cache.block_size,
        layout="account",
        prefix_caching=config.cache.enable_prefix_caching,
        emulated=table,
    )


def _planned(config: EngineConfig, role: str, folder: Path, name: str | None) -> PlannedModel:
    shape = read_model(folder, config.model.model_impl)
    return PlannedModel(role, name or checkpoint_name(folder), folder, shape)


def checkpoint_name(folder: Path) -> str:
    """A folder's name, or ``owner/name`` for the snapshot of a hub model in the local cache."""
    cached = folder.parent.parent.name
    if folder.parent.name == "snapshots" and cached.startswith("models--"):
        return cached.removeprefix("models--").replace("--", "/")
    return folder.name


def pick_device(name: str) -> torch.device:
    """The device of ``--device``, the host's own for an emulated one. Raises ConfigError for one
    that this machine lacks."""
    if is_emulated(name):
        return torch.device("cpu")
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name!r} is not a device; use auto, cpu or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: this machine has no usable CUDA device")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name!r} is not supported; use auto, cpu or cuda:N")
    # With an index it equals the device of the tensors on it.
    return torch.device("cuda:0") if name == "cuda" else device


def pick_attention(name: str, device: torch.device, layout: str) -> str:
    """What computes attention by ``--attention``: ``triton`` or ``sdpa``.

    Raises ConfigError where triton is asked for and cannot be had.
    """
    if name == "sdpa" or (name == "auto" and device.type == "cpu"):
        return "sdpa"
    installed = importlib.util.find_spec("triton") is not None
    if name == "auto":
        return "triton" if installed else "sdpa"
    if not installed:
        raise ConfigError("--attention triton: triton is not installed; use sdpa")
    # Triton's interpreter computes on a CPU, for tests.
    if layout != "paged" or (device.type == "cpu" and not os.environ.get("TRITON_INTERPRET")):
        raise ConfigError("--attention triton is for a GPU; use sdpa")
    return "triton"


def pick_kernels(
    choice: str, models: Sequence[PlannedModel], progress: Callable[[str], None] | None
) -> NativeLibrary | None:
    """The compiled kernels by ``--compile``; None where PyTorch's compute."""
    if choice == "never" or not any(isinstance(model.config, ModelConfig) for model in models):
        return None
    try:
        return native_library(progress)
    except NativeError as error:
        logger.warning("%s; computing with PyTorch's kernels, which are slower", error)
        return None


def pick_dtype(name: str, model: ModelShape, device: torch.device) -> torch.dtype:
    """The arithmetic of ``--dtype``; ``auto`` is lossless on a CPU and native on a GPU."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else model.dtype
    if name not in DTYPES:
        raise ConfigError(
            f"the checkpoint's own type {name!r} is not served; choose --dtype {', '.join(DTYPES)}"
        )
    return DTYPES[name]


def planned_kv_budget(config: EngineConfig, plan: ResourcePlan, other_processes: int = 0) -> int:
    """Bytes for the KV of all models, by :func:`kv_budget`, or of the emulated devices."""
    if plan.emulated is None or config.cache.kv_cache_memory is not None:
        return kv_budget(config.cache, plan.device, other_processes)
    devices = len(set(device_numbers(plan.topology, config.model.device)))
    return kv_bytes(plan.emulated, config.cache.gpu_memory_utilization, devices)


def kv_budget(options: CacheOptions, device: torch.device, other_processes: int = 0) -> int:
    """Bytes for the KV of all models. On a GPU call it after the weights are loaded.

    ``other_processes``: how many will use the GPU as well, each with a CUDA context of its own.
    """
    if options.kv_cache_memory is not None:
        return options.kv_cache_memory
    if device.type == "cpu":
        return DEFAULT_CPU_KV_BYTES
    free, total = torch.cuda.mem_get_info(device)
    taken = total - free + other_processes * CUDA_CONTEXT_BYTES
    return max(0, int(total * options.gpu_memory_utilization) - taken)
