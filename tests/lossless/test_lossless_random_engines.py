"""Losslessness of engines configured at random, also with requests cancelled on the way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from engine_driver import Request, make_worker, run
from oracle import Oracle
from tiny_model import VOCABULARY, TinyPair

from pdv_mp.wire.engine import Finish

ENGINES = 40
REQUESTS_PER_ENGINE = 500


def random_options(rng: np.random.Generator) -> dict[str, object]:
    """Any engine that the command line could ask for, small enough to be fast."""
    return {
        "num_speculative_tokens": "auto" if rng.random() < 0.3 else int(rng.integers(0, 9)),
        "max_speculative_tokens": int(rng.integers(1, 9)),
        "max_num_seqs": int(rng.integers(1, 33)),
        "queue_factor": float(rng.choice([1.0, 1.2, 2.0])),
        "max_num_batched_tokens": int(rng.integers(1, 200)),
        "prefill_priority": float(rng.uniform(0.01, 1.0)),
        "block_size": int(rng.choice([1, 3, 16, 64])),
        "kv_cache_memory": int(rng.choice([1 << 17, 1 << 20, 1 << 26])),
        "kv_layout": str(rng.choice(["contiguous", "paged"])),
        "max_model_len": int(rng.integers(96, 200)),
    }


def random_request(rng: np.random.Generator) -> Request:
    return Request(
        prompt=tuple(rng.integers(0, VOCABULARY, int(rng.integers(1, 64))).tolist()),
        max_tokens=int(rng.integers(1, 33)),
        temperature=float(rng.choice([0.0, rng.uniform(0.1, 2.0)])),
        top_k=int(rng.integers(-1, 50)),
        top_p=float(rng.uniform(0.05, 1.0)),
        min_p=float(rng.choice([0.0, rng.uniform(0.0, 0.5)])),
        seed=int(rng.integers(-(2**53) + 1, 2**53)),
        stop_ids=tuple(rng.integers(0, VOCABULARY, int(rng.integers(0, 5))).tolist()),
        speculate=bool(rng.random() < 0.8),
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(ENGINES))
def test_every_token_is_the_verifiers_own(
    seed: int, tiny_pair: TinyPair, report_line: Callable[[str], None]
) -> None:
    rng = np.random.default_rng(1000 + seed)
    options = random_options(rng)
    requests = [random_request(rng) for _ in range(REQUESTS_PER_ENGINE)]
    worker = make_worker(tiny_pair.verifier, tiny_pair.draft, **options)
    results = run(
        worker,
        requests,
        rng,
        arrivals_per_step=float(rng.uniform(0.2, 20)),
        cancel_probability=float(rng.choice([0.0, 0.1])),
    )
    whole = [i for i, result in enumerate(results) if result.finish is not Finish.ABORT]
    verdicts = Oracle(tiny_pair.verifier).judge(
        [requests[i] for i in whole], [results[i] for i in whole]
    )
    assert verdicts.wrong == []
    report_line(
        f"engine {seed}: {len(whole)} whole outputs, {verdicts.tokens} tokens all the verifier's "
        f"own ({verdicts.near_ties} near-ties); {options}"
    )
