"""What the scheduler asks of the stages, taken from its table of sequences."""

from __future__ import annotations

import numpy as np

from pdv_mp.scheduling.sequences import SequenceTable, Slots
from pdv_mp.stages.messages import Column, DraftOrder, PrefillOrder


def prefill_order(table: SequenceTable, slots: Slots) -> PrefillOrder:
    """Compute what the caches lack of the texts of newly admitted slots."""
    starts, lengths = table.target_len[slots], table.num_prompt[slots]
    return PrefillOrder(
        slots=slots,
        starts=starts,
        lengths=lengths,
        ids=table.ragged_tokens(slots, starts, lengths - starts),
        fills_draft=table.fills_draft[slots],
        logprobs=table.logprobs[slots],
        prompt_logprobs=table.prompt_logprobs[slots],
        sampling=table.sampling.get(slots),
    )


def draft_order(
    table: SequenceTable, cycle: int, slots: Slots, base: Column, lengths: Column, to_lane: bool
) -> DraftOrder:
    """Draft ``lengths`` tokens after the ``base`` committed ones.

    A lane is told the parameters of those slots that it does not know yet, and from now on does; a
    stage that is here, those of all.
    """
    starts = table.draft_len[slots]
    fresh = np.arange(len(slots))
    if to_lane:
        fresh = np.flatnonzero(~table.known_to_draft[slots])
        table.known_to_draft[slots] = True
    return DraftOrder(
        cycle=cycle,
        slots=slots,
        base=base,
        lengths=lengths,
        starts=starts,
        ids=table.ragged_tokens(slots, starts, base - starts),
        fresh=fresh,
        sampling=table.sampling.get(slots[fresh]),
    )
