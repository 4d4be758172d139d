"""Any causal language model of transformers as a forward pass of ours.

transformers' modules compute everything but attention. Their attention layers call a function of
the name ATTENTION, which is registered in transformers' AttentionInterface: it writes the keys and
values of the batch into our KVCache and lets that attend. A ragged batch is one row of N tokens
with positions of their own; which sequence a token belongs to is known to the cache's plan only.
"""

from __future__ import annotations

import inspect
import math
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface

from pdv_mp.model.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pdv_mp.memory.attention_plan import AttentionPlan
    from pdv_mp.memory.kv_cache import KVCache
    from pdv_mp.model.batch import ForwardBatch
    from pdv_mp.model.transformers_config import TransformersConfig

ATTENTION = "pdv_mp"

_REFUSED_OPTIONS = {
    "softcap": "soft-caps attention scores",
    "s_aux": "has attention sinks",
    "position_bias": "adds biases to attention scores",
    "indices": "attends to a selection of tokens",
}
"""What a module may ask of an attention function, if not None, and our caches cannot do."""


@dataclass(slots=True)
class _Pass:
    """One forward pass, for the attention functions that are called within it."""

    config: TransformersConfig
    cache: KVCache
    plan: AttentionPlan
    max_model_len: int
    layers: list[int] = field(default_factory=list)


_current: ContextVar[_Pass] = ContextVar("pdv_mp_transformers_pass")
# Set for the duration of one forward pass of one model, so that no two models can meet in it.


class TransformersModel:
    """Computes logits for ragged batches, with keys and values in a KVCache."""

    uses_plan = True

    def __init__(
        self, config: TransformersConfig, model: PreTrainedModel, max_model_len: int
    ) -> None:
        """`model`: in eval mode, with the attention implementation ATTENTION.

        Positions 0 .. max_model_len - 1 may occur; ModelError if the model cannot go so far.
        """
        config.check_max_model_len(max_model_len)
        self.config = config
        self.max_model_len = max_model_len
        self.layers_called: tuple[int, ...] = ()
        self._model = model
        # Where a class cannot be told which rows get logits, all rows get them.
        self._selects = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.inference_mode()
    def forward(
        self, batch: ForwardBatch, cache: KVCache, plan: AttentionPlan | None = None
    ) -> torch.Tensor:
        """Write the keys and values of all N rows and return the logits of the wanted ones.

        `plan`: the cache's plan of this batch where there is one already; otherwise it is made.
        Returns float32 [len(batch.logit_rows), vocab_size], or [N, vocab_size] when logit_rows is
        None. Raises ValueError for a slot or position that the cache does not have, and its
        subclass ModelError for a module whose attention is not of the kind that a cache computes.
        """
        plan = cache.plan(batch) if plan is None else plan
        this = _Pass(self.config, cache, plan, self.max_model_len)
        rows = batch.logit_rows
        selection = {} if rows is None or not self._selects else {"logits_to_keep": rows}
        token = _current.set(this)
        try:
            output = self._model(
                input_ids=batch.token_ids[None],
                position_ids=batch.positions[None],
                use_cache=False,
                return_dict=True,
                **selection,
            )
        finally:
            _current.reset(token)
        self.layers_called = tuple(this.layers)
        logits: torch.Tensor = output.logits[0]
        if rows is not None and not selection:
            logits = logits.index_select(0, rows)
        return logits.float()


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function over the cache of the current pass.

    query: [1, num_heads, N, head_dim]; key, value: [1, num_kv_heads, N, head_dim]. Returns
    [1, N, num_heads, head_dim]. Raises ModelError for other shapes and for what is not plain causal
    attention.
    """
    this = _current.get(None)
    if this is None:
        raise RuntimeError(
            f"the attention function {ATTENTION} is called outside of a forward pass"
        )
    config = this.config
    _refuse(this, attention_mask, options)
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int) or not 0 <= layer < config.num_layers:
        raise ModelError(
            f"{config.architecture} is not supported: it calls attention for layer {layer} of "
            f"{config.num_layers}."
        )
    this.layers.append(layer)
    kv_heads, group, dim = config.num_kv_heads, config.group_size, config.head_dim
    rows = query.shape[2]
    shapes = ((1, config.num_heads, rows, dim), (1, kv_heads, rows, dim), (1, kv_heads, rows, dim))
    found = (tuple(query.shape), tuple(key.shape), tuple(value.shape))
    if found != shapes:
        raise ModelError(
            f"{config.architecture} is not supported: layer {layer} has queries, keys and values "
            f"of shapes {', '.join(str(list(shape)) for shape in found)} [1, heads, tokens, size] "
            f"where its config.json speaks of {config.num_heads} heads, {kv_heads} key/value heads "
            f"and size {dim}; if keys are missing there, add them."
        )
    dtype = this.cache.dtype
    kv = torch.cat((key[0], value[0]), 0).transpose(0, 1).reshape(rows, -1)
    this.cache.write(layer, kv.to(dtype), this.plan)
    # The cache scales by 1 / sqrt(head_dim), and wants heads in the order [group, kv_heads].
    factor = 1.0 if scaling is None else scaling * math.sqrt(dim)
    if not math.isclose(factor, 1.0, rel_tol=1e-6):
        query = query * factor
    grouped = query.view(kv_heads, group, rows, dim).permute(2, 1, 0, 3).reshape(rows, -1)
    attended = this.cache.attend(layer, grouped.to(dtype), this.plan)
    heads = attended.view(rows, group, kv_heads, dim).transpose(1, 2)
    return heads.reshape(1, rows, config.num_heads, dim).to(value.dtype), None


def _refuse(this: _Pass, attention_mask: torch.Tensor | None, options: dict[str, Any]) -> None:
    reasons = [why for name, why in _REFUSED_OPTIONS.items() if options.get(name) is not None]
    if attention_mask is not None:
        reasons.append("makes attention masks of its own")
    if options.get("is_causal") is False:
        reasons.append("attends to later tokens")
    window = options.get("sliding_window")
    if window is not None and window < this.max_model_len:
        reasons.append(
            f"has layers that attend to {window} tokens only; choose --max-model-len {window} at "
            "most"
        )
    if reasons:
        raise ModelError(f"{this.config.architecture} is not supported: it {reasons[0]}.")


AttentionInterface.register(ATTENTION, attend)
