"""Requests whose prompts share beginnings."""

from __future__ import annotations

import numpy as np
from engine_driver import Request
from tiny_model import VOCABULARY


def requests_with_common_beginnings(rng: np.random.Generator, count: int) -> list[Request]:
    """Prompts of up to 64 tokens that begin like one of a few texts, outputs of up to 60."""
    texts = [tuple(rng.integers(0, VOCABULARY, 48).tolist()) for _ in range(4)]
    # Of two letters only, so that equal blocks follow different beginnings.
    texts += [tuple(rng.integers(7, 9, 48).tolist()) for _ in range(3)]
    requests = []
    for _ in range(count):
        common = texts[int(rng.integers(len(texts)))][: int(rng.integers(0, 49))]
        letters = (7, 9) if rng.random() < 0.3 else (0, VOCABULARY)
        own = tuple(rng.integers(*letters, int(rng.integers(1, 17))).tolist())
        sampled = rng.random() < 0.5
        requests.append(
            Request(
                prompt=common + own,
                max_tokens=int(rng.integers(1, 61)),
                temperature=float(rng.choice([0.5, 1.0, 1.3])) if sampled else 0.0,
                top_k=int(rng.choice([0, 0, 40])),
                top_p=float(rng.choice([1.0, 0.9])),
                seed=int(rng.integers(0, 2**53)),
                stop_ids=tuple(rng.integers(0, VOCABULARY, int(rng.integers(0, 2))).tolist()),
                speculate=bool(rng.random() < 0.9),
            )
        )
    return requests
