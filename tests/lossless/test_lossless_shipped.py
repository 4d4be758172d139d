"""Losslessness on the shipped pair: 200 requests over draft lengths 1 to 8, every token judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from engine_driver import Request, Result, make_worker, run
from oracle import Oracle, check_lossless
from tokenizers import Tokenizer

from pdv_mp import assets

REQUESTS_PER_LENGTH = 25


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(assets.verifier_path())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(assets.verifier_path() / "tokenizer.json"))


def random_requests(rng: np.random.Generator, tokenizer: Tokenizer, count: int) -> list[Request]:
    """Windows of the held-out files, greedy and sampled, some with stops that do occur."""
    files = [tokenizer.encode(text).ids for _, text in assets.heldout_files()]
    requests = []
    for _ in range(count):
        ids = files[int(rng.integers(len(files)))]
        start = int(rng.integers(0, len(ids) - 50))
        length = int(rng.choice([1, 5, 40, 120, 300]))
        following = ids[start : start + length + 40]
        stops = rng.choice(following, 2).tolist() if rng.random() < 0.4 else []
        requests.append(
            Request(
                prompt=tuple(ids[start : start + length]),
                max_tokens=int(rng.integers(1, 65)),
                temperature=float(rng.choice([0.0, 0.0, 0.7, 1.0])),
                top_k=int(rng.choice([0, 20])),
                top_p=float(rng.choice([1.0, 0.9])),
                seed=int(rng.integers(0, 2**53)),
                stop_ids=(0, *stops),
            )
        )
    return requests


def serve(requests: list[Request], length: int, seed: int) -> list[Result]:
    worker = make_worker(
        assets.verifier_path(),
        assets.draft_path(),
        num_speculative_tokens=length,
        kv_cache_memory=1 << 28,
        max_num_seqs=[1, 4, 9, 32][length % 4],
        max_num_batched_tokens=[512, 33, 128][length % 3],
    )
    return run(worker, requests, np.random.default_rng(seed), arrivals_per_step=2.0)


@pytest.mark.parametrize(
    "length",
    [
        pytest.param(length, marks=() if length in (1, 8) else pytest.mark.slow)
        for length in range(1, 9)
    ],
)
def test_every_token_is_the_verifiers_own(
    length: int, oracle: Oracle, tokenizer: Tokenizer, report_line: Callable[[str], None]
) -> None:
    requests = random_requests(np.random.default_rng(length), tokenizer, REQUESTS_PER_LENGTH)
    results = serve(requests, length, seed=length)
    plain = serve([replace(request, speculate=False) for request in requests], length, seed=50)
    check_lossless(f"shipped pair, k = {length}", oracle, requests, results, plain, report_line)
