"""Log-probabilities of what the stages emit, for the requests that ask for them."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pdv_mp.scheduling.columns import ragged_range
from pdv_mp.speculation.logprobs import token_logprobs
from pdv_mp.stages.messages import Column, PromptChunkLogprobs, TokenLogprobs


def emitted_logprobs(
    logits: Tensor, first_rows: Column, emitted: Column, counts: Column, widths: Column
) -> TokenLogprobs | None:
    """Of the first ``counts[b]`` tokens of each row of ``emitted`` [B, T], which the logits from
    row ``first_rows[b]`` on decide; only where ``widths[b]`` >= 0. None if that is nowhere.

    Returns them padded to [B, T] and [B, T, max(widths)].
    """
    wanting = np.flatnonzero(widths >= 0)
    if len(wanting) == 0:
        return None
    entries = np.repeat(wanting, counts[wanting])
    places = ragged_range(np.zeros_like(wanting), counts[wanting])
    found = token_logprobs(
        logits, first_rows[entries] + places, emitted[entries, places], int(widths.max())
    )
    width = found.top.shape[1]
    padded = TokenLogprobs(
        np.zeros(emitted.shape, np.float32),
        np.zeros((*emitted.shape, width), np.int32),
        np.zeros((*emitted.shape, width), np.float32),
    )
    padded.chosen[entries, places] = found.chosen
    padded.top_ids[entries, places] = found.top_ids
    padded.top[entries, places] = found.top
    return padded


def prompt_chunk_logprobs(
    logits: Tensor, first_row: int, slot: int, start: int, ids: Column, width: int
) -> PromptChunkLogprobs:
    """Of the prompt tokens ``ids`` of ``slot``, at positions from ``start`` on, which the logits
    from row ``first_row`` on decide."""
    found = token_logprobs(logits, first_row + np.arange(len(ids)), ids, width)
    return PromptChunkLogprobs(slot, start, TokenLogprobs(*found))
