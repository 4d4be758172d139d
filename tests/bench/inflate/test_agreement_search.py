"""The search for noise: it ends at the wanted rate, repeats itself, and says when it cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_model import TinyPair
from transformers import AutoModelForCausalLM

from bench.inflate.agreement import QUESTIONS, Agreement, Measurement, Question, Sample, bootstrap
from bench.inflate.errors import InflateError
from bench.inflate.noise import perturbed
from bench.inflate.search import find_scale
from bench.inflate.source import Role, find_pair, read_config, read_tensors

SMALL = Sample(windows=12, context=16, scored=40)


def quiet(scale: float, measurement: Measurement) -> None:
    pass


def measured(rate: float, half: float = 0.0) -> Measurement:
    return Measurement(rate, rate - half, rate + half, 10, 1000)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("role", ["verifier", "draft"])
def test_tiny_model_reaches_the_wanted_agreement_with_itself(
    role: Role, question: Question, tiny_pair: TinyPair
) -> None:
    pair = find_pair(str(tiny_pair.verifier), role, None)
    agreement = Agreement(pair, question, SMALL, 0, torch.float32)
    assert agreement.measure(0.0).rate == 1.0
    found = find_scale(agreement.measure, 0.42, 0.03, quiet)
    assert abs(found.measurement.rate - 0.42) <= 0.03
    assert found.measurement.low <= found.measurement.rate <= found.measurement.high
    assert found.measurement.positions == 12 * 40


def test_measurement_follows_from_the_seed(tiny_pair: TinyPair) -> None:
    pair = find_pair(str(tiny_pair.verifier), "verifier", None)
    one, again, other = (
        Agreement(pair, "random", SMALL, seed, torch.float32).measure(0.1) for seed in (0, 0, 1)
    )
    assert one == again != other


def test_pair_is_measured_as_an_independent_count_has_it(tiny_pair: TinyPair) -> None:
    pair = find_pair(str(tiny_pair.verifier.parent), "verifier", None)
    assert (pair.inflated, pair.counterpart) == (tiny_pair.verifier, tiny_pair.draft)
    scale = 0.05
    asked = Agreement(pair, "continuation", SMALL, 7, torch.bfloat16)
    measurement = asked.measure(scale)
    verifier = AutoModelForCausalLM.from_pretrained(pair.verifier, dtype=torch.float32).eval()
    small = read_tensors(pair.verifier, read_config(pair.verifier))
    noisy = perturbed(small, scale, 7, torch.bfloat16)
    verifier.load_state_dict({name: value.float() for name, value in noisy.items()})
    draft = AutoModelForCausalLM.from_pretrained(pair.draft, dtype=torch.float32).eval()
    rows: list[list[bool]] = []
    for prompt in asked._ids.tolist():
        ids = prompt
        rows.append([])
        for _ in range(SMALL.scored):
            with torch.inference_mode():
                chosen, guessed = (
                    int(model(torch.tensor([ids])).logits[0, -1].argmax())
                    for model in (verifier, draft)
                )
            rows[-1].append(chosen == guessed)
            ids = [*ids, chosen]
    assert measurement.rate == pytest.approx(float(np.mean(rows)), abs=0.005)
    # One token drafted at a time: every cycle ends with a token of the verifier's own.
    drafted = accepted = 0
    for row in rows:
        position = 1  # the first token comes with the prompt
        while position < len(row) - 1:
            drafted += 1
            accepted += row[position]
            position += 1 + row[position]
    assert measurement.accepted[1] == pytest.approx(accepted / drafted, abs=0.01)


def test_noise_is_of_the_matrices_and_grows_with_the_scale(tiny_pair: TinyPair) -> None:
    small = read_tensors(tiny_pair.verifier, read_config(tiny_pair.verifier))
    once, twice = (perturbed(small, scale, 0, torch.float32) for scale in (0.1, 0.2))
    for name, value in small.items():
        first, second = once[name] - value, twice[name] - value
        if name.endswith("_proj.weight"):
            assert float(first.std()) == pytest.approx(0.1 * float(value.std()), rel=0.1)
            assert torch.allclose(second, 2 * first, atol=1e-6)
        else:
            assert not first.any()


@pytest.mark.parametrize("wanted", [0.05, 0.42, 0.9, 1.0])
def test_search_ends_on_a_smooth_curve(wanted: float) -> None:
    found = find_scale(lambda scale: measured(float(np.exp(-3 * scale))), wanted, 0.01, quiet)
    assert abs(found.measurement.rate - wanted) <= 0.01
    assert found.steps < 20


def test_unreachable_rates_are_named() -> None:
    with pytest.raises(InflateError, match=r"agree at 0.600 without noise.* one folder"):
        find_scale(lambda scale: measured(0.6), 0.8, 0.01, quiet)
    with pytest.raises(InflateError, match=r"still agree at 0.600 with the strongest noise"):
        find_scale(lambda scale: measured(0.6), 0.2, 0.01, quiet)


@pytest.mark.parametrize("half", [0.0, 0.2])
def test_curve_that_jumps_ends_inside_the_interval_or_says_so(half: float) -> None:
    def jump(scale: float) -> Measurement:
        return measured(0.6 if scale < 0.3 else 0.3, half)

    if half:
        assert find_scale(jump, 0.42, 0.01, quiet).measurement.rate == 0.3
    else:
        with pytest.raises(InflateError, match=r"jumps past 0.42: the nearest is 0.300"):
            find_scale(jump, 0.42, 0.01, quiet)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for seed in range(200):
        rates = generator.beta(2, 3, 48)  # of windows that differ: the mean is 0.4
        low, high = bootstrap(rates, seed)
        covered += low <= 0.4 <= high
    assert 179 <= covered <= 199


def test_heldout_text_that_does_not_suffice_is_named(tiny_pair: TinyPair) -> None:
    pair = find_pair(str(tiny_pair.verifier), "verifier", None)
    with pytest.raises(InflateError, match="too few for 2 windows"):
        Agreement(pair, "text", Sample(2, 10, 10**7), 0, torch.float32)
