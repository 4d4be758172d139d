"""Losslessness of pairs that transformers' modules compute: every token judged, several families.

The oracle is transformers itself, without our caches (see ``oracle.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_driver import Request, Result, make_worker, run
from oracle import Oracle, check_lossless
from tiny_model import VOCABULARY, TinyPair
from transformers_families import make_pair

from pdv_mp.model.transformers_model import TransformersModel

REQUESTS = 150

# noise of the draft's weights, draft length, batch, prompt tokens per chunk, block size, layout
CASES = {
    "opt": (0.04, 3, 16, 32, 16, "contiguous"),
    "gpt2": (0.04, 4, 8, 7, 4, "paged"),
    "gemma": (0.02, 2, 32, 64, 16, "contiguous"),
    "phi": (0.04, 5, 13, 48, 8, "paged"),
    "gpt_neox": (0.04, 1, 32, 16, 16, "contiguous"),
    "stablelm": (0.02, 4, 16, 512, 16, "paged"),
    "gpt_bigcode": (0.03, 6, 5, 24, 1, "contiguous"),
    "llama": (0.02, 4, 32, 32, 16, "contiguous"),
}
QUICK = ("opt", "gemma", "phi")


def random_requests(rng: np.random.Generator) -> list[Request]:
    """Prompts of 1 to 60 tokens, outputs of 1 to 20; half greedy, half sampled."""
    return [
        Request(
            prompt=tuple(rng.integers(0, VOCABULARY, int(rng.integers(1, 60))).tolist()),
            max_tokens=int(rng.integers(1, 21)),
            temperature=float(rng.choice([0.0, 0.0, 0.7, 1.0])),
            top_k=int(rng.choice([0, 5, 40])),
            top_p=float(rng.choice([1.0, 0.9])),
            min_p=float(rng.choice([0.0, 0.02])),
            seed=int(rng.integers(0, 2**53)),
            stop_ids=tuple(rng.integers(0, VOCABULARY, int(rng.integers(0, 4))).tolist()),
            speculate=bool(rng.random() < 0.9),
        )
        for _ in range(REQUESTS)
    ]


def serve(pair: TinyPair, family: str, requests: list[Request], seed: int) -> list[Result]:
    _, length, batch, chunk, block_size, layout = CASES[family]
    worker = make_worker(
        pair.verifier,
        pair.draft,
        model_impl="transformers",
        num_speculative_tokens=length,
        max_num_seqs=batch,
        max_num_batched_tokens=chunk,
        block_size=block_size,
        kv_layout=layout,
        max_model_len=128,
    )
    assert isinstance(worker.verify._target.transformer, TransformersModel)
    return run(worker, requests, np.random.default_rng(seed), arrivals_per_step=3.0)


@pytest.mark.parametrize(
    "family",
    [pytest.param(family, marks=() if family in QUICK else pytest.mark.slow) for family in CASES],
)
def test_every_token_is_the_verifiers_own(
    family: str, tmp_path: Path, report_line: Callable[[str], None]
) -> None:
    pair = make_pair(family, tmp_path, noise=CASES[family][0])
    seed = 1 + list(CASES).index(family)
    requests = random_requests(np.random.default_rng(seed))
    results = serve(pair, family, requests, seed)
    plain = serve(pair, family, [replace(r, speculate=False) for r in requests], seed + 100)
    label = f"{family} by transformers' modules"
    check_lossless(label, Oracle(pair.verifier), requests, results, plain, report_line)
