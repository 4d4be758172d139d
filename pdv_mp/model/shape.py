"""What the engine needs to know of any model, whatever computes its forward pass."""

from __future__ import annotations

from dataclasses import dataclass

from pdv_mp.model.errors import ModelError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a model's vocabulary, context and KV cache, and its end-of-sequence ids.

    `sliding_window` is the window in tokens or None: full attention is computed, so a longer
    context is refused. `rope_change` is the length at which rotary embeddings of the kinds
    `dynamic` and `longrope` change the angles of all earlier positions too, or None: keys that are
    cached already cannot follow, so a longer context is refused.
    """

    architecture: str
    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    sliding_window: int | None = None
    rope_change: int | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "float32"

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def context_limit(self) -> int:
        """The largest max_model_len that `check_max_model_len` accepts, in tokens."""
        limits = (self.max_position_embeddings, self.sliding_window, self.rope_change)
        return min(limit for limit in limits if limit is not None)

    def check_max_model_len(self, max_model_len: int) -> None:
        """Raise ModelError when this model cannot attend over `max_model_len` tokens."""
        if max_model_len > self.max_position_embeddings:
            raise ModelError(
                f"max_model_len {max_model_len} exceeds the model's context of "
                f"{self.max_position_embeddings} tokens; choose at most that."
            )
        if self.sliding_window is not None and max_model_len > self.sliding_window:
            raise ModelError(
                f"max_model_len {max_model_len} exceeds the model's sliding window of "
                f"{self.sliding_window} tokens and sliding-window attention is not supported; "
                f"choose at most {self.sliding_window}."
            )
        if self.rope_change is not None and max_model_len > self.rope_change:
            raise ModelError(
                f"max_model_len {max_model_len} exceeds the {self.rope_change} tokens after which "
                "the model's rotary embedding would change for cached tokens too, which is not "
                f"supported; choose at most {self.rope_change}."
            )

    def kv_bytes_per_token(self, dtype: object) -> int:
        """Bytes of keys and values of one token in all layers; `dtype` as 'float32' or torch's."""
        name = str(dtype).removeprefix("torch.")
        if name not in DTYPE_BYTES:
            raise ValueError(f"KV caches are float32, bfloat16 or float16, not {name}")
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * DTYPE_BYTES[name]
