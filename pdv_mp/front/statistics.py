"""What the front counts of the requests that it serves: ``info.served``.

The front outlives every worker, so these counts lack nothing when one is replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pdv_mp.config import ServerOptions
from pdv_mp.front.journal import Request
from pdv_mp.metrics.histogram import LATENCY_BOUNDS_NS, TOKEN_BOUNDS, Histogram

_MILLISECOND = 1_000_000

LATENCIES = (
    "time_to_first_token",
    "inter_token",
    "time_per_output_token",
    "end_to_end",
    "queue",
    "prefill",
    "decode",
)
"""Each a histogram in ns; docs/metrics.md says from when to when."""

TOKENS = ("prompt", "generation")
"""Each a histogram of a request's tokens."""

MAX_DRAFT = 64
"""Most draft tokens of a cycle that any configuration allows."""


class Statistics:
    """Counts of tokens, cycles and requests, and histograms of latencies; they only grow."""

    def __init__(self, server: ServerOptions) -> None:
        self._good_ttft_ns = int(server.goodput_ttft_ms * _MILLISECOND)
        self._good_tpot_ns = int(server.goodput_tpot_ms * _MILLISECOND)
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._generation_tokens = 0
        self._good_requests = 0
        self._drafted = [0] * (MAX_DRAFT + 1)
        self._accepted = [0] * (MAX_DRAFT + 1)
        self._latencies = {name: Histogram(LATENCY_BOUNDS_NS) for name in LATENCIES}
        self._inter_token = self._latencies["inter_token"]
        self._tokens = {name: Histogram(TOKEN_BOUNDS) for name in TOKENS}

    def verified(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Of some entries of a Tokens message: the draft tokens of its cycle, and those kept."""
        for length, kept in zip(drafted, accepted, strict=True):
            if length:
                self._drafted[length] += 1
                self._accepted[kept] += 1

    def emitted(self, request: Request, count: int, now: int) -> None:
        """A request has got ``count`` tokens more, at least one."""
        self._generation_tokens += count
        if request.last_token_ns:
            self._inter_token.observe(now - request.last_token_ns)
        else:
            prompt = len(request.prompt_ids)
            self._prompt_tokens += prompt
            self._cached_tokens += request.cached_tokens
            self._latencies["time_to_first_token"].observe(now - request.arrived_ns)
        request.last_token_ns = now

    def finished(self, request: Request, now: int) -> None:
        """A request ended as it should, by a stop or its length."""
        tokens = len(request.output_ids)
        first, last = request.first_token_ns, request.last_token_ns
        self._tokens["prompt"].observe(len(request.prompt_ids))
        self._tokens["generation"].observe(tokens)
        latencies = self._latencies
        latencies["end_to_end"].observe(now - request.arrived_ns)
        if not first:
            return
        scheduled = request.opened_ns + request.engine_queued_ns
        latencies["queue"].observe(scheduled - request.queued_ns)
        latencies["prefill"].observe(max(0, first - scheduled))
        latencies["decode"].observe(last - first)
        per_token = 0
        if tokens > 1:
            per_token = (last - first) // (tokens - 1)
            latencies["time_per_output_token"].observe(per_token)
        in_time = first - request.arrived_ns <= self._good_ttft_ns
        self._good_requests += in_time and per_token <= self._good_tpot_ns

    def as_dict(self) -> dict[str, Any]:
        """``info.served`` of docs/protocol.md."""
        return {
            "prompt_tokens": self._prompt_tokens,
            "cached_tokens": self._cached_tokens,
            "generation_tokens": self._generation_tokens,
            "good_requests": self._good_requests,
            "drafted_lengths": list(self._drafted),
            "accepted_lengths": list(self._accepted),
            "latency_bounds_ns": list(LATENCY_BOUNDS_NS),
            "latencies": {name: found.as_dict() for name, found in self._latencies.items()},
            "token_bounds": list(TOKEN_BOUNDS),
            "tokens": {name: found.as_dict() for name, found in self._tokens.items()},
        }
