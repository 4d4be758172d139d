"""What a model's work is made of: numbers of weights, of the KV cache, of attention."""

from __future__ import annotations

from dataclasses import dataclass

from pdv_mp.model.architecture import ModelConfig


@dataclass(frozen=True, slots=True)
class ModelCost:
    """A Llama-family model. ``bytes_per_number``: of weights and KV cache alike."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    bytes_per_number: int

    @classmethod
    def of(cls, config: ModelConfig, bytes_per_number: int = 4) -> ModelCost:
        """From a parsed config.json."""
        return cls(
            layers=config.num_layers,
            hidden=config.hidden_size,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            intermediate=config.intermediate_size,
            vocabulary=config.vocab_size,
            bytes_per_number=bytes_per_number,
        )

    @property
    def layer_weights(self) -> int:
        """Weights of all layers' matrices."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_weights(self) -> int:
        """Weights of the LM head. The input embedding is looked up and not read as a whole."""
        return self.hidden * self.vocabulary

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that a step reads."""
        return (self.layer_weights + self.head_weights) * self.bytes_per_number

    @property
    def head_bytes(self) -> int:
        """Those of the LM head."""
        return self.head_weights * self.bytes_per_number

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV cache per token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_number

    @property
    def attention_flops(self) -> int:
        """Operations of attention per pair of a query and a cached token."""
        return 4 * self.layers * self.heads * self.head_dim
