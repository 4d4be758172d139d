"""When the scheduler's messages go to the front."""

from __future__ import annotations

import time

import numpy as np
import pytest
from engine_driver import Request, make_worker, open_message
from tiny_model import TinyPair

from pdv_mp.scheduling.emissions import HOLD_NS, Emissions
from pdv_mp.wire.engine import Finish, LogprobColumns, PromptLogprobs, Tokens


def tokens(key: int, emitted_ns: int) -> Tokens:
    one = np.ones(1, np.int32)
    return Tokens(
        requests=np.array([key], np.int64),
        queued_ns=np.zeros(1, np.int64),
        counts=one,
        drafted=one - 1,
        accepted=one - 1,
        finish=one - 1,
        stop_ids=one - 2,
        cached=one - 1,
        ids=one,
        emitted_ns=emitted_ns,
    )


def keys(emissions: Emissions) -> list[int]:
    return [
        message.request if isinstance(message, PromptLogprobs) else int(message.requests[0])
        for message in emissions.take(0)
    ]


def test_what_nobody_waits_for_is_held_for_a_while() -> None:
    emissions = Emissions()
    assert not emissions.are_due(10**18)
    emissions.tokens(tokens(1, 1000), [], at_once=False)
    emissions.tokens(tokens(2, 2000), [], at_once=False)
    assert emissions
    assert not emissions.are_due(1000 + HOLD_NS - 1)
    assert emissions.are_due(1000 + HOLD_NS)
    assert keys(emissions) == [1, 2]
    assert not emissions
    emissions.tokens(tokens(3, 10**9), [], at_once=False)
    assert not emissions.are_due(10**9 + HOLD_NS - 1), "the first message's time is over"


@pytest.mark.parametrize("urgent", ["tokens", "prompt logprobs"])
def test_what_somebody_waits_for_takes_along_what_was_held(urgent: str) -> None:
    emissions = Emissions()
    emissions.tokens(tokens(1, 1000), [], at_once=False)
    if urgent == "tokens":
        emissions.tokens(tokens(2, 1001), [])
    else:
        nothing, none = np.zeros(0, np.float32), np.zeros(0, np.int32)
        columns = LogprobColumns(nothing, none, none, nothing)
        emissions.prompt_logprobs(PromptLogprobs(request=2, start=1, logprobs=columns))
    emissions.tokens(tokens(3, 1002), [], at_once=False)
    assert emissions.are_due(1003)
    assert keys(emissions) == [1, 2, 3]


@pytest.mark.parametrize("awaited", [False, True])
def test_first_and_last_tokens_are_due_at_once_the_others_if_awaited(
    tiny_pair: TinyPair, awaited: bool
) -> None:
    worker = make_worker(tiny_pair.verifier, tiny_pair.draft, max_model_len=64)
    message = open_message(1, Request((3, 4, 5), max_tokens=20))
    message.at_once = awaited
    worker.scheduler.submit(message)
    due, finishes = [], []
    while worker.scheduler.num_open:
        worker.step()
        now = time.monotonic_ns()
        is_due = worker.scheduler.owes_emissions(now)
        emitted = worker.emissions(now)
        assert emitted or not is_due
        for part in emitted:
            assert isinstance(part, Tokens)
            assert 0 < part.emitted_ns <= now
            due.append(is_due)
            finishes.append(int(part.finish[0]))
    assert len(due) > 3
    assert finishes == [Finish.NONE] * (len(due) - 1) + [Finish.LENGTH]
    assert due == [True] + [awaited] * (len(due) - 2) + [True]
