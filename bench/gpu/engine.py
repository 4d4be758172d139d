"""The engine of ``unified`` in this process, without its sockets: tokens/s of a steady batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pdv_mp.config import EngineConfig
from pdv_mp.resources.resources import Resources
from pdv_mp.timeline import Timeline, state_index
from pdv_mp.wire.engine import Finish, Open, Tokens
from pdv_mp.wire.frames import Stamps
from pdv_mp.workers.worker import Worker

_ENCODE = state_index("front>verify.encode")


@dataclass(frozen=True, slots=True)
class Rate:
    """What one round came to.

    ``decode``: tokens/s from when all requests have their first token to when the first one ends.
    ``whole``: tokens/s from the first prompt to the last token. The time that recordings of new
    shapes took is in neither: a server records each once. ``acceptance``: accepted / drafted,
    0 where nothing was drafted. ``emitted``: tokens per verification of a request.
    """

    decode: float
    whole: float
    acceptance: float
    emitted: float


def serve(
    resources: Resources, config: EngineConfig, prompts: Sequence[Sequence[int]], max_tokens: int
) -> Rate:
    """Serve the prompts together, greedily, ``max_tokens`` each.

    Raises RuntimeError where they do not run together.
    """
    worker = Worker(resources, config)
    started = _seconds(resources)
    for key, prompt in enumerate(prompts):
        worker.scheduler.submit(_open(key, prompt, max_tokens))
    received = np.zeros(len(prompts), np.int64)
    began = ended = 0.0  # by a clock that stands still while a shape is recorded
    at_begin = at_end = 0
    done = 0
    while done < len(prompts):
        if not worker.step():
            raise RuntimeError("the engine stopped with requests open")
        now = _seconds(resources)
        for message in worker.emissions(time.monotonic_ns()):
            if isinstance(message, Tokens):
                received[message.requests] += message.counts
                done += int((message.finish != int(Finish.NONE)).sum())
        if not began and received.all():
            began, at_begin = now, int(received.sum())
        if done and not ended:
            ended, at_end = now, int(received.sum())
    if ended <= began:
        raise RuntimeError(f"{len(prompts)} requests never ran together: max_tokens is too small")
    counters = worker.counters
    drafted, emitted = counters.drafted_tokens, int(received.sum()) - len(prompts)
    return Rate(
        decode=(at_end - at_begin) / (ended - began),
        whole=float(received.sum()) / (now - started),
        acceptance=counters.accepted_tokens / drafted if drafted else 0.0,
        emitted=emitted / max(1, emitted - counters.accepted_tokens),
    )


def _seconds(resources: Resources) -> float:
    """The time, without what recording steps has taken."""
    steps = [runner.steps for runner in resources.runners.values() if runner.steps is not None]
    return time.perf_counter() - sum(each.recorded_ns for each in steps) / 1e9


def _open(key: int, prompt: Sequence[int], max_tokens: int) -> Open:
    now = time.monotonic_ns()
    return Open(
        request=key,
        prompt_ids=np.array(prompt, np.int32),
        max_tokens=max_tokens,
        sampling=(0.0, 0, 1.0, 0.0, 0),
        stop_ids=(),
        speculate=True,
        logprobs=-1,
        prompt_logprobs=-1,
        report_timeline=False,
        timeline=Timeline(_ENCODE, now).pack(),
        stamps=Stamps(now, now, now, now),
    )
