"""Counters of one engine; they only grow while a process lives."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Counters:
    """Forwards, cycles and tokens.

    ``verify_cycles`` counts request cycles: verify passes of one request with at least one draft
    token. ``prefill_tokens`` were computed for prompts and for sequences that go on after a
    pre-emption; ``cached_tokens`` came from the prefix cache instead. ``drafted_tokens`` and
    ``accepted_tokens`` are before any cut by a stop or max_tokens. ``ahead_drafts``: tokens drafted
    ahead, guesses of the verifier's own included; ``ahead_hits``: those that became drafts.
    """

    prefill_forwards: int = 0
    draft_prefill_forwards: int = 0
    draft_forwards: int = 0
    verify_forwards: int = 0
    verify_cycles: int = 0
    prefill_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    stale_proposals: int = 0
    ahead_drafts: int = 0
    ahead_hits: int = 0
    preemptions: int = 0
    cached_tokens: int = 0
    admitted: int = 0
    ended: int = 0

    def as_dict(self) -> dict[str, int]:
        """All counters by name."""
        return asdict(self)
