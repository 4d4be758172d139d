"""The shapes of the two shipped models and the plan by which they are trained."""

from __future__ import annotations

from dataclasses import dataclass

VOCABULARY_SIZE = 4096
CONTEXT_LENGTH = 2048
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
SEED = 20240917


@dataclass(frozen=True)
class ModelShape:
    """Dimensions of a Llama-architecture decoder with tied embeddings."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocabulary_size: int = VOCABULARY_SIZE
    context_length: int = CONTEXT_LENGTH
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


VERIFIER_SHAPE = ModelShape(
    hidden_size=256,
    num_layers=10,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    intermediate_size=640,
)
DRAFT_SHAPE = ModelShape(
    hidden_size=128,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=64,
    intermediate_size=384,
)


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how fast one model is trained.

    The learning rate warms up linearly, stays, and falls linearly to zero over the last
    ``decay_share`` of the steps (warm-up, stable, decay: arXiv 2404.06395). Every batch has
    ``tokens_per_batch`` tokens, in windows of ``window`` and, over the last ``long_share`` of the
    steps, of ``long_window``. ``matrix_rate`` is Muon's rate for the layers' matrices,
    ``vector_rate`` AdamW's for the embedding and the norms.
    """

    steps: int
    tokens_per_batch: int = 8192
    window: int = 512
    long_window: int = CONTEXT_LENGTH
    long_share: float = 0.15
    warmup_steps: int = 100
    decay_share: float = 0.4
    matrix_rate: float = 0.02
    vector_rate: float = 3e-3
    weight_decay: float = 0.02
    checkpoint_steps: int = 100

    @property
    def long_start(self) -> int:
        """The first step with long windows."""
        return self.steps - round(self.steps * self.long_share)

    def rate_factor(self, step: int) -> float:
        """What the learning rates are multiplied by at ``step`` (0-based)."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        decay_steps = max(1, round(self.steps * self.decay_share))
        return min(warm, (self.steps - step) / decay_steps)


VERIFIER_PLAN = TrainingPlan(steps=2000)
DRAFT_PLAN = TrainingPlan(steps=3200, tokens_per_batch=4096, decay_share=0.5)


@dataclass(frozen=True)
class ContinuationPlan:
    """How much text the verifier writes for the draft: ``batches`` of ``rows`` rows."""

    batches: int = 8
    rows: int = 256
    prompt_lengths: tuple[int, ...] = (65, 129, 193, 257)
    sampled_period: int = 4


CONTINUATION_PLAN = ContinuationPlan()
