"""Usage and per-request measurements of finished requests."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from pdv_mp.client.client_core import Completion


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """The ``usage`` of an answer."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def usage_of(completions: Sequence[Completion], n: int, *, discards_output: bool) -> dict[str, Any]:
    """The ``usage`` of all completions of a call; each prompt counts once, though it has ``n``."""
    used = [completion.usage for completion in completions]
    prompts = used[::n]
    return usage(
        sum(item.get("prompt_tokens", 0) for item in prompts),
        0 if discards_output else sum(item.get("completion_tokens", 0) for item in used),
        sum(item.get("cached_tokens", 0) for item in prompts),
    )


def metrics(completion: Completion) -> dict[str, Any]:
    """The measurements of one completion, under vLLM's names; None for what was not measured."""
    timing = completion.timing
    ttft, e2e, queue = (timing.get(name) for name in ("ttft_ms", "e2e_ms", "queue_ms"))
    tokens = completion.usage.get("completion_tokens", 0)
    generation = None if ttft is None or e2e is None else e2e - ttft
    gaps = max(tokens - 1, 0)
    return {
        "time_to_first_token_ms": ttft,
        "generation_time_ms": generation,
        "queue_time_ms": queue,
        "mean_itl_ms": generation / gaps if generation is not None and gaps else None,
        "tokens_per_second": 1000 * gaps / generation if generation and gaps else None,
        "speculative_decoding": _speculation(completion.speculation),
    }


def _speculation(counts: dict[str, Any]) -> dict[str, Any] | None:
    cycles = counts.get("cycles", 0)
    if not cycles:
        return None
    drafted, accepted = counts["drafted"], counts["accepted"]
    per_position: list[int] = counts["accepted_per_pos"]
    at_least = [cycles, *per_position, 0]
    return {
        "mean_acceptance_length": 1 + accepted / cycles,
        "draft_acceptance_rate": accepted / drafted if drafted else 0.0,
        "acceptance_histogram": [more - fewer for more, fewer in pairwise(at_least)],
        "num_spec_steps": cycles,
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": drafted,
        "num_spec_tokens": len(per_position),
    }
