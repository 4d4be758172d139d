"""Sampled sequences follow the verifier's law: a G-test over all sequences of a tiny model."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from engine_driver import Request, make_worker, run
from random_lengths import use_random_lengths
from scipy.stats import chi2
from tiny_model import TinyPair
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pdv_mp.scheduling.counters import Counters
from pdv_mp.speculation import rejection

VOCABULARY = 4
LENGTH = 4
SAMPLES = 5000
PROMPT = (1, 3, 0, 2)
SMALLEST_EXPECTED = 5.0

SETTINGS = {
    "temperature-1": Request(PROMPT, LENGTH, temperature=1.0),
    "temperature-0.7-top-k": Request(PROMPT, LENGTH, temperature=0.7, top_k=3),
    "temperature-1.3-top-p": Request(PROMPT, LENGTH, temperature=1.3, top_p=0.8),
    "temperature-1-min-p": Request(PROMPT, LENGTH, temperature=1.0, min_p=0.15),
}


@pytest.fixture(scope="module")
def four_tokens(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    folder = tmp_path_factory.mktemp("four")
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.2,
    )
    for name, seed in (("verifier", 1), ("draft", 2)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            LlamaForCausalLM(config).save_pretrained(folder / name)
    return TinyPair(folder / "verifier", folder / "draft")


def exact_law(folder: Path, request: Request) -> np.ndarray:
    """Probability of each of the VOCABULARY ** max_tokens sequences, by transformers alone."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sequences = list(itertools.product(range(VOCABULARY), repeat=request.max_tokens))
    with torch.inference_mode():
        logits = model(torch.tensor([[*request.prompt, *s] for s in sequences])).logits
    law = np.ones(len(sequences))
    for place in range(request.max_tokens):
        rows = TemperatureLogitsWarper(request.temperature)(
            None, logits[:, len(request.prompt) - 1 + place]
        )
        if request.top_k:
            rows = TopKLogitsWarper(request.top_k)(None, rows)
        if request.top_p < 1:
            rows = TopPLogitsWarper(request.top_p)(None, rows)
        if request.min_p:
            rows = MinPLogitsWarper(request.min_p)(None, rows)
        chosen = torch.tensor([s[place] for s in sequences])
        law *= rows.softmax(-1).gather(1, chosen[:, None])[:, 0].double().numpy()
    return law


def g_test(observed: np.ndarray, expected: np.ndarray) -> float:
    """p-value of the likelihood-ratio test; rare outcomes are pooled into one."""
    rare = expected < SMALLEST_EXPECTED
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    assert observed[expected == 0].sum() == 0, "an impossible sequence was sampled"
    used = expected > 0
    observed, expected = observed[used], expected[used]
    hit = observed > 0
    statistic = 2 * np.sum(observed[hit] * np.log(observed[hit] / expected[hit]))
    return float(chi2.sf(statistic, len(expected) - 1))


def sampled_sequences(
    pair: TinyPair,
    request: Request,
    samples: int = SAMPLES,
    k: int = 2,
    random_lengths: bool = False,
    **options: object,
) -> tuple[np.ndarray, Counters]:
    """How often each sequence is sampled by so many seeds, and the engine's counters."""
    worker = make_worker(
        pair.verifier, pair.draft, num_speculative_tokens=k, max_model_len=16, **options
    )
    if random_lengths:
        use_random_lengths(worker, k, np.random.default_rng(1))
    requests = [replace(request, seed=seed) for seed in range(samples)]
    results = run(worker, requests, np.random.default_rng(0), arrivals_per_step=16)
    assert 0.1 < worker.counters.accepted_tokens / worker.counters.drafted_tokens < 0.95
    powers = VOCABULARY ** np.arange(request.max_tokens)[::-1]
    outcomes = [int(np.dot(result.ids, powers)) for result in results]
    return np.bincount(outcomes, minlength=VOCABULARY**request.max_tokens), worker.counters


@pytest.mark.parametrize("acceptance", ["gumbel", "rejection"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_sampled_sequences_follow_the_exact_law(
    setting: str, acceptance: str, four_tokens: TinyPair
) -> None:
    request = SETTINGS[setting]
    observed, _ = sampled_sequences(four_tokens, request, acceptance=acceptance)
    law = exact_law(four_tokens.verifier, request)
    assert law.sum() == pytest.approx(1, abs=1e-5)
    assert g_test(observed, SAMPLES * law) > 0.01


@pytest.mark.parametrize("acceptance", ["gumbel", "rejection"])
def test_ngram_drafts_follow_the_exact_law(acceptance: str, four_tokens: TinyPair) -> None:
    """Their law is one-hot."""
    request = Request(PROMPT, max_tokens=4, temperature=1.0, top_p=0.95)
    observed, counters = sampled_sequences(
        replace(four_tokens, draft=None),
        request,
        acceptance=acceptance,
        speculative_config='{"method": "ngram"}',
    )
    assert counters.draft_forwards == 0
    assert g_test(observed, SAMPLES * exact_law(four_tokens.verifier, request)) > 0.01


def test_rejection_sampling_is_exact_whatever_lengths_are_chosen(four_tokens: TinyPair) -> None:
    request = Request(PROMPT, max_tokens=5, temperature=1.0, top_k=3)
    observed, _ = sampled_sequences(
        four_tokens, request, k=4, random_lengths=True, acceptance="rejection"
    )
    assert g_test(observed, SAMPLES * exact_law(four_tokens.verifier, request)) > 0.01


def test_rejection_sampling_is_exact_under_constant_preemption(four_tokens: TinyPair) -> None:
    """Where a request is pre-empted decides which of its tokens are drafts, and not their law."""
    request = Request(PROMPT, max_tokens=6, temperature=1.0, top_k=3)
    observed, counters = sampled_sequences(
        four_tokens,
        request,
        samples=2000,
        k=1,
        acceptance="rejection",
        block_size=1,
        kv_cache_memory=1 << 14,
    )
    assert counters.preemptions > 100
    assert g_test(observed, 2000 * exact_law(four_tokens.verifier, request)) > 0.01


def test_the_engines_g_test_sees_a_broken_rule(four_tokens: TinyPair) -> None:
    """Rejection sampling whose corrections are drawn from p instead of from what q left of it."""
    request = SETTINGS["temperature-1"]
    with mock.patch.object(rejection, "residual", lambda p, q, ids: p.clone()):
        observed, _ = sampled_sequences(four_tokens, request, acceptance="rejection")
    law = exact_law(four_tokens.verifier, request)
    assert g_test(observed, SAMPLES * law) < 0.01


def test_the_g_test_sees_a_small_error() -> None:
    rng = np.random.default_rng(0)
    law = rng.dirichlet(np.ones(256))
    wrong = law * rng.uniform(0.7, 1.4, 256)
    observed = rng.multinomial(SAMPLES, wrong / wrong.sum())
    assert g_test(observed, SAMPLES * law) < 0.01
    assert g_test(rng.multinomial(SAMPLES, law), SAMPLES * law) > 0.01
