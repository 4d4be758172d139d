"""The least time of a step, and of a whole cell.

The roofline model (Williams, Waterman and Patterson, "Roofline: an insightful visual performance
model for multicore architectures", 2009), applied to a step of B requests with m query tokens each
over ``ctx`` cached ones:

    T = max(W / bandwidth, 2 N B m / flops)
        + max(B ctx kv / bandwidth, 4 layers heads head_dim ctx B m / flops) + launch layers

W: bytes of the weights that a step reads, N: their number, kv: bytes of the KV cache per token. The
two parts follow each other within a layer, so they add up. Norms, rotations, softmax and everything
between steps are free here: nothing can be faster than this, and a good engine comes near.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.roofline.models import ModelCost
from bench.roofline.rates import Rates

MOST_DRAFT_TOKENS = 16


def step_seconds(
    rates: Rates,
    model: ModelCost,
    batch: float,
    tokens: float,
    context: float,
    head_tokens: float | None = None,
) -> float:
    """A step of ``batch`` requests with ``tokens`` queries each over ``context`` cached tokens.

    ``head_tokens``: of how many queries of each request logits are needed, all without it. The
    last layer counts for these alone: of the others nobody needs more than its keys and values,
    which are free here as well. Without any the head is not read.
    """
    rows = batch * tokens
    head_rows = rows if head_tokens is None else batch * head_tokens
    layer_rows = rows - (rows - head_rows) / model.layers
    matrix = 2 * (model.layer_weights * layer_rows + model.head_weights * head_rows)
    read = model.step_bytes if head_rows else model.step_bytes - model.head_bytes
    weights = max(read / rates.bandwidth, matrix / rates.flops)
    cached = batch * context * model.kv_bytes / rates.bandwidth
    attention = max(cached, model.attention_flops * context * layer_rows / rates.flops)
    return weights + attention + rates.launch * model.layers


def prefill_seconds(
    rates: Rates, model: ModelCost, batch: float, prompt: float, head_tokens: float = 1
) -> float:
    """All prompts in one step: a token attends over half the prompt on average, and logits are
    needed of the last one, or, of a draft model (``head_tokens`` 0), of none."""
    return step_seconds(rates, model, batch, prompt, prompt / 2, head_tokens)


def expected_tokens(acceptance: float, length: float) -> float:
    """Tokens of a cycle with ``length`` draft tokens, each accepted with this probability if all
    before it are: (1 - a^(k+1)) / (1 - a) (Leviathan, Kalman and Matias, "Fast inference from
    transformers via speculative decoding", 2023)."""
    if acceptance >= 1:
        return length + 1
    return float((1 - acceptance ** (length + 1)) / (1 - acceptance))


def acceptance_of(tokens_per_cycle: float, length: float) -> float:
    """The acceptance at which cycles of ``length`` draft tokens yield so many tokens."""
    if length <= 0 or tokens_per_cycle <= 1:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if expected_tokens(middle, length) < tokens_per_cycle else (low, middle)
        )
    return low


@dataclass(frozen=True, slots=True)
class CellWork:
    """``batch`` requests at once, ``prompt`` tokens in and ``output`` tokens out each, speculating
    with ``length`` draft tokens per cycle that yield ``per_cycle`` tokens; length 0 and 1 token is
    plain decoding. ``batch`` and the others may be means."""

    batch: float
    prompt: float
    output: float
    length: float = 0.0
    per_cycle: float = 1.0


def cycle_seconds(
    rates: Rates, verifier: ModelCost, draft: ModelCost | None, work: CellWork
) -> float:
    """A cycle in the middle of the output: ``length`` draft steps, then one verification."""
    context = work.prompt + work.output / 2
    drafting = 0.0
    if draft is not None and work.length > 0:
        drafting = work.length * step_seconds(rates, draft, work.batch, 1, context)
    return drafting + step_seconds(rates, verifier, work.batch, work.length + 1, context)


def decode_bound(
    rates: Rates, verifier: ModelCost, draft: ModelCost | None, work: CellWork
) -> float:
    """The most output tokens/s after the first ones."""
    return work.batch * work.per_cycle / cycle_seconds(rates, verifier, draft, work)


def cell_bound(rates: Rates, verifier: ModelCost, draft: ModelCost | None, work: CellWork) -> float:
    """The most output tokens/s, prefill included: the prompts of both models in a step each, which
    gives every request its first token, then as many cycles as the rest takes."""
    seconds = prefill_seconds(rates, verifier, work.batch, work.prompt)
    if draft is not None and work.length > 0:
        seconds += prefill_seconds(rates, draft, work.batch, work.prompt, head_tokens=0)
    cycles = max(0.0, work.output - 1) / work.per_cycle
    seconds += cycles * cycle_seconds(rates, verifier, draft, work)
    return work.batch * work.output / seconds


def best_length(
    rates: Rates, verifier: ModelCost, draft: ModelCost, work: CellWork, acceptance: float
) -> CellWork:
    """The same work with the draft length, 0 included, whose bound is highest at an acceptance."""
    choices = (
        CellWork(work.batch, work.prompt, work.output, k, expected_tokens(acceptance, k))
        for k in range(MOST_DRAFT_TOKENS + 1)
    )
    return max(choices, key=lambda choice: cell_bound(rates, verifier, draft, choice))
