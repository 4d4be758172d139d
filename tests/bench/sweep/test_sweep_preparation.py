"""``bench.sweep.preparation``: what a run says of itself before it begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_model import TinyPair

from bench.load import Trace, Workload, parse_lengths
from bench.results.records import Objective
from bench.sweep.errors import PlanError
from bench.sweep.preparation import DEFAULT_SECONDS, Options, Prepared, prepare_run


@pytest.fixture
def prepared(tiny_pair: TinyPair, tmp_path: Path) -> Any:
    """Prepares a run of the tiny pair; options by name."""
    pairs = tmp_path / "pairs.yaml"
    models = f"{{verifier: {tiny_pair.verifier}, draft: {tiny_pair.draft}}}"
    pairs.write_text(f"tiny: {models}", encoding="utf-8")
    prompts = tmp_path / "mine.jsonl"
    prompts.write_text('{"prompt": "def add("}', encoding="utf-8")

    def prepare(**changes: Any) -> Prepared:
        values: dict[str, Any] = {
            "topologies": {"unified": ("unified", {}), "pd": ("pd", {})},
            "concurrency": [],
            "rate": [],
            "burstiness": 1.0,
            "trace": None,
            "pairs": pairs,
            "blocks": 8,
            "seconds": None,
            "ramp": 0.5,
            "budget": 600.0,
            "precision": None,
            "again": True,
            "slo": "",
            "workload": str(prompts),
            "prompt_tokens": parse_lengths("12"),
            "output_tokens": parse_lengths("8"),
            "temperature": 0.0,
            "option": {},
            "seed": 3,
        }
        return prepare_run(Options(**{**values, **changes}))

    return prepare


def write_trace(path: Path, *arrivals: float) -> Path:
    fields = {"prompt_tokens": 8, "max_tokens": 4}
    lines = [json.dumps({"arrival": arrival, **fields}) for arrival in arrivals]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_run_says_what_it_is(prepared: Any) -> None:
    found: Prepared = prepared(rate=[4.0], concurrency=[2], slo="ttft=500")
    run = found.run
    assert [candidate.name for candidate in run.candidates] == ["unified", "pd", "unified (again)"]
    assert run.reference == "unified"
    assert [load.name for load in run.loads] == ["C=2", "rate=4"]
    assert (run.window, run.ramp, run.seed) == (DEFAULT_SECONDS, 0.5, 3)
    assert run.objective == Objective(ttft_ms=500)
    assert run.workload["source"].endswith("mine.jsonl")
    assert set(run.workload["digests"]["tiny"]) == {"workload"}
    assert [(c.pair, c.candidate) for c in run.configurations] == [
        ("tiny", candidate.name) for candidate in run.candidates
    ]
    assert not run.configurations[0].options["cache"]["enable_prefix_caching"]
    works = found.works["tiny"]
    assert works["C=2"] is works["rate=4"]
    assert isinstance(works["C=2"], Workload)
    assert works["C=2"].seed == 3
    assert found.notes == ()


def test_a_trace_alone_is_replayed_whole(prepared: Any, tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "day.jsonl", 0.1, 0.9, 4.5)
    found: Prepared = prepared(trace=trace)
    assert isinstance(found.works["tiny"]["trace=day.jsonl"], Trace)
    assert found.run.window == 4.0
    assert found.notes == ()
    assert found.run.workload["trace_requests"] == 3
    both: Prepared = prepared(trace=trace, concurrency=[2])
    assert both.run.window == DEFAULT_SECONDS
    (note,) = both.notes
    assert note.startswith(
        "the trace goes on for 4.5 s, and the first 3 s are replayed; --seconds 4"
    )


def test_what_is_asked_for_is_known_by_its_contents(prepared: Any, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    digests = []
    for text in ("one", "two"):
        prompts.write_text(json.dumps({"prompt": text}), encoding="utf-8")
        trace = write_trace(tmp_path / "day.jsonl", 1.0 + len(digests))
        run = prepared(workload=str(prompts), trace=trace, concurrency=[1]).run
        digests.append(run.workload["digests"]["tiny"])
    assert digests[0]["workload"] != digests[1]["workload"]
    assert digests[0]["trace"] != digests[1]["trace"]


def test_what_cannot_show_anything_is_said(prepared: Any, tmp_path: Path) -> None:
    assert prepared(blocks=3).notes == ("3 blocks are too few to compare anything; 8 are needed",)
    with pytest.raises(PlanError, match=r"the trace is over after 0.4 s, and the first 0.5 s do"):
        prepared(trace=write_trace(tmp_path / "day.jsonl", 0.4))
    with pytest.raises(PlanError, match="take 54 s at least, and the budget is 50 s"):
        prepared(budget=50.0)
