"""What the scheduler has to tell the front, until the worker sends it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from pdv_mp.scheduling.sequences import Sequence
from pdv_mp.stages.messages import TokenLogprobs
from pdv_mp.timeline import Timeline, state_index
from pdv_mp.wire.engine import Finish, LogprobColumns, PromptLogprobs, Tokens

_ENCODE = state_index("verify>front.encode")

HOLD_NS = 50_000_000
"""For so long, and until the step that then runs has ended, tokens that nobody waits for may stay
here. Each message wakes the front, which takes a core from the step that runs."""


@dataclass(frozen=True, slots=True)
class _Emission:
    """A message to the front, and the timelines that it is to carry by entry number."""

    message: Tokens | PromptLogprobs
    timelines: list[tuple[int, Timeline]]


class Emissions:
    """Messages to the front in their order. Timelines are closed when they are taken."""

    def __init__(self) -> None:
        self._waiting: list[_Emission] = []
        self._due_ns = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def are_due(self, now: int) -> bool:
        """Whether somebody waits for what there is, or it has been here for :data:`HOLD_NS`."""
        return bool(self._waiting) and now >= self._due_ns

    def tokens(
        self, message: Tokens, timelines: list[tuple[int, Timeline]], at_once: bool = True
    ) -> None:
        """What a batch emitted, and the timelines to report by entry number. ``at_once``: somebody
        waits for it."""
        if at_once:
            self._due_ns = 0
        elif not self._waiting:
            self._due_ns = message.emitted_ns + HOLD_NS
        self._waiting.append(_Emission(message, timelines))

    def prompt_logprobs(self, message: PromptLogprobs) -> None:
        """A part of a prompt's log-probabilities, which come with its first token."""
        self._due_ns = 0
        self._waiting.append(_Emission(message, []))

    def end(self, sequence: Sequence, finish: Finish, text: str | None = None) -> None:
        """A sequence ends without another token."""
        zero = np.zeros(1, np.int32)
        message = Tokens(
            requests=np.array([sequence.request], np.int64),
            queued_ns=np.array([sequence.queued_ns], np.int64),
            counts=zero,
            drafted=zero,
            accepted=zero,
            finish=np.array([finish], np.int32),
            stop_ids=zero - 1,
            cached=zero,
            ids=zero[:0],
            messages=[] if text is None else [(0, text)],
            emitted_ns=time.monotonic_ns(),
        )
        self.tokens(message, [(0, sequence.timeline)] if sequence.report_timeline else [])

    def take(self, encode_ns: int) -> list[Tokens | PromptLogprobs]:
        """All that waits, timelines closed at ``encode_ns``."""
        emissions, self._waiting = self._waiting, []
        for emission in emissions:
            if isinstance(emission.message, Tokens):
                emission.message.timelines = [
                    (entry, timeline.snapshot(_ENCODE, encode_ns))
                    for entry, timeline in emission.timelines
                ]
        return [emission.message for emission in emissions]


def logprob_columns(logprobs: TokenLogprobs, widths: np.ndarray) -> LogprobColumns:
    """The columns of R rows, each with the first ``widths[r]`` of its alternatives."""
    widths = np.minimum(widths, logprobs.top.shape[1])
    used = np.arange(logprobs.top.shape[1]) < widths[:, None]
    return LogprobColumns(
        chosen=logprobs.chosen,
        widths=widths.astype(np.int32),
        top_ids=logprobs.top_ids[used],
        top=logprobs.top[used],
    )
