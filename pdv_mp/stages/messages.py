"""What stages hand to each other, in columns of slots and token ids.

An order carries everything that a stage needs besides weights and KV, so a stage keeps nothing that
could not be sent again. The one tensor among them, a proposal's laws, is made only by acceptance
rules that need it. Every entry carries the committed length it builds on (``base``), so that one
that has become stale can be recognised by whoever receives it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pdv_mp.graphs.graph_steps import PendingDrafts
from pdv_mp.speculation.sampling import SamplingColumns

Column = npt.NDArray[np.int64]

USUALLY_FED = 2
"""Tokens that the draft's cache lacks after a cycle whose drafts were all kept."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities of tokens in the model's own distribution, padded.

    ``chosen`` float32 [..., T]: of the tokens. ``top_ids`` int32, ``top`` float32 [..., T, W]: the
    W most probable ids, best first, and theirs; W is the most that any request of the batch wants.
    Rows of requests that want none hold anything.
    """

    chosen: npt.NDArray[np.float32]
    top_ids: npt.NDArray[np.int32]
    top: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PromptChunkLogprobs:
    """Log-probabilities of the prompt tokens of ``slot`` from position ``start`` >= 1 on."""

    slot: int
    start: int
    logprobs: TokenLogprobs


@dataclass(frozen=True, slots=True)
class PrefillOrder:
    """Compute prompts: of slot ``slots[b]`` the tokens from ``starts[b]`` to ``lengths[b]``.

    The caches hold what lies before. ``ids`` int32: those tokens, one slot after the other.
    ``fills_draft``: fill the draft's cache as well. ``logprobs``, ``prompt_logprobs``: alternatives
    to report beside the first token and beside the prompt's, -1 for no report.
    """

    slots: Column
    starts: Column
    lengths: Column
    ids: npt.NDArray[np.int32]
    fills_draft: npt.NDArray[np.bool_]
    logprobs: Column
    prompt_logprobs: Column
    sampling: SamplingColumns


@dataclass(frozen=True, slots=True)
class PrefillBatch:
    """Chunks of prompts: ``lengths[b]`` tokens of slot ``slots[b]`` from position ``starts[b]``.

    ``finishes`` marks the chunks that complete their prompt.
    """

    slots: Column
    starts: Column
    lengths: Column
    finishes: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Prefilled:
    """What a prefill batch computed, and the first token that the verifier gives each prompt that
    is complete with it.

    ``computed``, ``lengths``: all slots of the batch, and how many tokens of each were added to the
    caches. ``slots``, ``next_ids``: those whose prompt is complete; they are handed back.
    ``logprobs``: of ``next_ids``, T = 1, where a request of the batch wants them.
    ``prompt_logprobs``: of the chunks just computed, whether they end their prompts or not.
    """

    slots: Column
    next_ids: Column
    computed: Column
    lengths: Column
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[PromptChunkLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class DraftOrder:
    """Propose ``lengths[b]`` >= 1 tokens for slot ``slots[b]`` after ``base[b]`` committed ones.

    The draft's cache holds ``starts[b]`` < ``base[b]`` of these; ``ids`` int32 are the others, one
    slot after the other. ``fresh``: entries whose slot the stage does not know yet, with their
    ``sampling`` parameters, [len(fresh)]. ``cycle`` comes back with the proposal.
    """

    cycle: int
    slots: Column
    base: Column
    lengths: Column
    starts: Column
    ids: npt.NDArray[np.int32]
    fresh: Column
    sampling: SamplingColumns


@dataclass(frozen=True, slots=True)
class Proposal:
    """``ids[b, :lengths[b]]`` may follow the ``base[b]`` committed tokens; a length may be 0.

    ``ids`` is [B, K], int64, padded with -1. ``laws`` float32 [B, K, V], on the draft's device: the
    probabilities that each id was drawn from, None if every id was certain or the acceptance rule
    does not ask; padding and rows of greedy requests hold anything. ``pending``: the ids are still
    being computed, and ``ids`` holds anything before :func:`known`.
    """

    slots: Column
    base: Column
    lengths: Column
    ids: npt.NDArray[np.int64]
    laws: Tensor | None = None
    pending: PendingDrafts | None = None


def known(proposal: Proposal) -> Proposal:
    """The proposal with its ids, which are waited for."""
    if proposal.pending is None:
        return proposal
    ids = proposal.pending.wait()
    ids[np.arange(ids.shape[1]) >= proposal.lengths[:, None]] = -1
    return replace(proposal, ids=ids, pending=None)


def without_drafts(work: DraftOrder | Proposal) -> Proposal:
    """The same slots, verified without a draft."""
    nothing = np.zeros((len(work.slots), 0), np.int64)
    return Proposal(work.slots, work.base, np.zeros_like(work.lengths), nothing)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a proposal: its first ``accepted[b]`` ids hold, then ``next_ids[b]`` follows.

    ``next_ids`` is the correction at the first mismatch, or the bonus token after a full match.
    ``logprobs``: of the emitted tokens, T = K + 1, where a request of the batch wants them.
    """

    proposal: Proposal
    accepted: Column
    next_ids: Column
    logprobs: TokenLogprobs | None = None
