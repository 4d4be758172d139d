"""The KV caches of a plan, in memory of one process or of several."""

from __future__ import annotations

import torch

from pdv_mp.emulation.kv_account import EmulatedKVCache
from pdv_mp.memory.contiguous_kv_cache import ContiguousKVCache
from pdv_mp.memory.kv_cache import KVCache
from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.resources.attachment import Attachment
from pdv_mp.resources.resource_plan import (
    PlannedModel,
    ResourcePlan,
    kv_name,
    store_name,
    table_name,
)


def paged_kind(plan: ResourcePlan) -> type[PagedKVCache]:
    """The class of a plan's paged caches."""
    if plan.attention == "triton":
        from pdv_mp.memory.triton_cache import TritonKVCache

        return TritonKVCache
    return PagedKVCache


def private_cache(plan: ResourcePlan, model: PlannedModel, num_blocks: int) -> KVCache:
    """The cache of a model in memory of this process."""
    if plan.emulated is not None:
        return _account(plan, model)
    if plan.layout == "contiguous":
        return ContiguousKVCache(
            model.config,
            plan.num_slots,
            plan.max_model_len,
            plan.dtype,
            plan.block_size,
            num_blocks if plan.prefix_caching else 0,
        )
    return paged_kind(plan)(
        model.config,
        num_blocks,
        plan.block_size,
        plan.num_slots,
        plan.max_model_len,
        plan.dtype,
        plan.device,
    )


def _account(plan: ResourcePlan, model: PlannedModel) -> KVCache:
    """What an emulated device has for a cache."""
    return EmulatedKVCache(
        model.config,
        plan.num_slots,
        plan.max_model_len,
        plan.dtype,
        plan.block_size,
        torch.device("cpu"),
    )


def shared_cache(
    plan: ResourcePlan,
    model: PlannedModel,
    attachment: Attachment,
    replica: int,
) -> KVCache:
    """The cache of a model and a replica in memory that others map too; it has the store if that is
    mapped, which only the scheduler's process needs."""
    num_blocks = attachment.num_blocks
    if plan.layout == "contiguous":
        store = attachment.memfds.get(store_name(model.role, replica))
        return ContiguousKVCache(
            model.config,
            plan.num_slots,
            plan.max_model_len,
            plan.dtype,
            plan.block_size,
            num_blocks if store is not None else 0,
            runs=attachment.memfds[kv_name(model.role, replica)],
            store=store,
        )
    return paged_kind(plan)(
        model.config,
        num_blocks,
        plan.block_size,
        plan.num_slots,
        plan.max_model_len,
        plan.dtype,
        plan.device,
        pool=attachment.tensor(kv_name(model.role, replica)),
        table=attachment.tensor(table_name(model.role, replica)),
    )


def lane_cache(
    plan: ResourcePlan, model: PlannedModel, num_blocks: int, table: torch.Tensor | None, held: bool
) -> KVCache:
    """The cache of a model in memory of a worker's own, whose blocks are numbered as in all others.

    ``table``: the block table that all of them map, None in the contiguous layout. Not ``held``:
    only the account of its blocks is kept here, and it takes no memory.
    """
    if table is None:
        return private_cache(plan, model, num_blocks)
    nbytes = plan.paged(model, num_blocks).pool_bytes
    device = plan.device if held else torch.device("meta")
    return paged_kind(plan)(
        model.config,
        num_blocks,
        plan.block_size,
        plan.num_slots,
        plan.max_model_len,
        plan.dtype,
        plan.device,
        pool=torch.zeros(nbytes, dtype=torch.uint8, device=device),
        table=table,
    )


def attached_cache(
    plan: ResourcePlan, model: PlannedModel, attachment: Attachment, replica: int, held: bool
) -> KVCache:
    """The cache of a model in a worker of a replica; ``held`` as in :func:`lane_cache`."""
    if plan.emulated is not None:
        return _account(plan, model)
    if not plan.private_caches:
        return shared_cache(plan, model, attachment, replica)
    table = None
    if plan.layout == "paged":
        table = attachment.tensor(table_name(model.role, replica))
    return lane_cache(plan, model, attachment.num_blocks, table, held)


def kv_names(plan: ResourcePlan, model: PlannedModel, replica: int, schedules: bool) -> set[str]:
    """Names of the buffers with a model's KV that a worker of a replica maps."""
    if plan.emulated is not None:
        return set()
    names = set() if plan.private_caches else {kv_name(model.role, replica)}
    if plan.layout == "paged":
        names.add(table_name(model.role, replica))
    elif schedules and plan.prefix_caching:
        names.add(store_name(model.role, replica))
    return names
