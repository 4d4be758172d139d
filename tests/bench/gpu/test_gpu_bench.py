"""The parts of ``python -m bench.gpu`` on a CPU, with a stand-in of the shipped verifier's size."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
import torch

from bench.gpu.bounds import Device, bound, step_seconds, streamed_parameters
from bench.gpu.cells import Pair, measure_pair, prompts
from bench.gpu.goals import GOALS, judge
from bench.gpu.page import BEGIN, END, as_json, put_section, render
from bench.gpu.stand_ins import StandIn
from bench.gpu_facts.facts import Fact, Outcome, Report, read_report
from bench.inflate.contents import Inflation
from bench.inflate.shapes import TargetShape, find_shape
from bench.inflate.shards import background_noise, pieces
from bench.inflate.source import read_tensors
from pdv_mp import assets
from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.loading import load_weights
from pdv_mp.model.weights import Manifest, Weights

H200 = Device(4.3e12, 790e12)


@pytest.fixture(scope="module")
def small() -> TargetShape:
    """The shape of the shipped verifier."""
    path = assets.verifier_path() / "config.json"
    return TargetShape("small", str(path), json.loads(path.read_text(encoding="utf-8")))


def test_a_stand_in_of_its_own_shape_is_the_shipped_verifier(small: TargetShape) -> None:
    config = ModelConfig.from_folder(assets.verifier_path())
    expected = load_weights(config, assets.verifier_path(), torch.bfloat16, "cpu")
    manifest = Manifest.build(config, torch.bfloat16)
    weights = Weights(manifest, torch.empty(manifest.nbytes, dtype=torch.uint8))
    StandIn(small).fill(weights)
    for entry in manifest.entries:
        assert torch.equal(weights[entry.name], expected[entry.name]), entry.name


def test_what_is_made_in_memory_is_what_would_be_written() -> None:
    shape = TargetShape(
        "odd",
        "here",
        {
            **json.loads((assets.verifier_path() / "config.json").read_text(encoding="utf-8")),
            "hidden_size": 700,
            "num_hidden_layers": 11,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "intermediate_size": 701,
            "vocab_size": 4100,
        },
    )
    plan = StandIn(shape).plan()
    small = read_tensors(plan.pair.inflated, plan.layout.source)
    noise = background_noise(plan.seed, plan.dtype)
    made = dict(StandIn(shape).tensors("cpu"))
    for name, size, content in Inflation(plan.layout, small, plan.dtype).contents():
        written = torch.cat(list(pieces(name, size, content, noise))).view(size)
        assert torch.equal(made.pop(name), written), name
    assert not made


def test_a_pair_is_measured(small: TargetShape, tmp_path: Path) -> None:
    pair = Pair(small, small, 0.7, (2,), (0, 2), prompt=16, output=12, device="cpu")
    measure_pair(Report(tmp_path / "facts", quick=True), pair, H200)
    facts, error = read_report(tmp_path / "facts")
    assert error == ""
    found = {fact.what: fact.values for fact in facts}
    for drafts in (0, 2):
        label = pair.label(drafts, 2)
        assert found[label][0] > 0
        assert found[f"{label}: prefill included"][0] > 0
        assert found[f"{label}: bound"][0] > found[label][0]
    assert 0 < found[f"{pair.label(2, 2)}: accepted / drafted"][0] < 1


def test_prompts_are_windows_that_differ() -> None:
    windows = prompts(40, 448, 3)
    assert len({tuple(window[:16]) for window in windows}) == 40
    assert {len(window) for window in windows} == {448}


def test_bounds_are_those_of_the_published_roofline() -> None:
    large, tiny = (find_shape(name).parse() for name in ("llama-2-7b", "tinyllama-1.1b"))
    assert 2 * streamed_parameters(large) == pytest.approx(13.21e9, rel=0.002)
    assert 2 * streamed_parameters(tiny) == pytest.approx(2.07e9, rel=0.002)
    assert step_seconds(large, H200, 1, 1, 0) == pytest.approx(3.073e-3, rel=0.002)
    for batch, plain, drafts, speculating in ((1, 319, 3, 552), (32, 6311, 4, 12092)):
        assert bound(large, tiny, H200, batch, 512, 0.7, 0) == pytest.approx(plain, rel=0.005)
        found = bound(large, tiny, H200, batch, 512, 0.7, drafts)
        assert found == pytest.approx(speculating, rel=0.005)


def test_goals_take_the_best_cell_of_their_batch() -> None:
    found = {
        "llama-2-7b, plain, batch 1": [259.0, 270.0, 281.0],
        "llama-2-7b, agreement 0.7, 3 drafts, batch 1": [390.0],
        "llama-2-7b, agreement 0.7, auto drafts, batch 1": [405.0],
        "llama-2-7b, plain, batch 128": [10000.0],
        "llama-2-7b, agreement 0.7, 2 drafts, batch 128": [12000.0],
    }
    words = [verdict.word for verdict in judge(found)]
    missing = "not measured"
    assert words == ["reached", "reached", missing, missing, "missed", "missed", missing]
    assert len(words) == len(GOALS)
    assert judge(found)[1].found == statistics.median([405.0])


def test_the_page_names_goals_cells_and_failures() -> None:
    cell = "llama-2-7b, plain, batch 1"
    outcomes = [
        Outcome(
            "large",
            "Large",
            [Fact(cell, "tokens/s", [300.0]), Fact(f"{cell}: bound", "tokens/s", [400.0])],
        ),
        Outcome("giant", "Giant", error="not done after 170 s", seconds=170.0),
    ]
    section = render(outcomes, False, date(2030, 1, 2))
    assert "| 7B plain, batch 1 | 260 | 300 | reached |" in section
    assert f"| {cell} | 300 tokens/s | 75% |" in section
    assert "**Failed** after 170 s: not done after 170 s" in section
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert put_section(page, section) == f"before\n{BEGIN}\n{section}{END}\nafter\n"
    with pytest.raises(ValueError, match="has no lines"):
        put_section("nothing", section)
    stored = json.loads(as_json(outcomes, False, date(2030, 1, 2)))
    assert stored["goals"][0]["verdict"] == "reached"
    assert [step["name"] for step in stored["steps"]] == ["large", "giant"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure for ten minutes")
def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, "-m", "bench.gpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "bench.gpu: this machine has no usable CUDA device\n"
