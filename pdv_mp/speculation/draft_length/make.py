"""The controllers by the names that ``--draft-controller`` gives them."""

from __future__ import annotations

from pdv_mp.config import SpeculationOptions
from pdv_mp.speculation.draft_length.controller import DraftLengthController
from pdv_mp.speculation.draft_length.feedback import Feedback
from pdv_mp.speculation.draft_length.fixed import FixedLength
from pdv_mp.speculation.draft_length.goodput import Goodput

AUTO = "auto"
FIXED_LENGTH = 4
"""Of the controller ``fixed`` where the length is left to it."""


def make_controller(
    options: SpeculationOptions, num_slots: int, overlap: int = 1, lookup_kinds: int = 0
) -> DraftLengthController:
    """The controller that the options ask for, for ``num_slots`` sequences.

    ``overlap``: groups that take turns, so that one is drafted while another is verified.
    ``lookup_kinds``: drafts are looked up, which takes no forward, and are of so many kinds.
    """
    if options.num_speculative_tokens != AUTO:
        return FixedLength(int(options.num_speculative_tokens), num_slots)
    longest = options.max_speculative_tokens
    if options.draft_controller == "goodput":
        return Goodput(longest, num_slots, overlap, lookup_kinds)
    if options.draft_controller == "feedback":
        return Feedback(longest)
    return FixedLength(min(FIXED_LENGTH, longest), num_slots)
