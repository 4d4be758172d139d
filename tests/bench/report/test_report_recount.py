"""Acceptance in a report of a real run: recounted from raw tokens, and from the draft model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from made_results import Truth
from server_process import ServerProcess
from tiny_model import VOCABULARY, TinyPair
from transformers import AutoModelForCausalLM

from bench.load.lengths import Lengths
from bench.load.loop import Loop
from bench.load.workloads import Workload
from bench.report.analysis import analyse
from bench.results.records import SCHEMA_VERSION, CellRecord
from bench.results.store import ResultsFolder

DRAFT_LENGTH = 3
PROMPTS = [[(7 * n + 3 * step) % (VOCABULARY - 1) + 1 for step in range(10)] for n in range(12)]


def proposals(tokens: int, runs: Sequence[int]) -> tuple[int, int]:
    """Cycles and drafted tokens of a request with so many tokens in which the verifier kept
    ``runs`` draft tokens at a time.

    The prefill gives the first token. A pass then proposes what may be kept, and leaves room for
    the verifier's own token; one that has room for that alone is no cycle.
    """
    position, cycles, drafted = 1, 0, 0
    for kept in runs:
        proposed = min(DRAFT_LENGTH, tokens - position - 1)
        cycles += proposed > 0
        drafted += proposed
        position += kept + 1
    assert position == tokens
    return cycles, drafted


def runs_of(flags: Sequence[int]) -> list[int]:
    """How many draft tokens come before each of the verifier's own, the prefill's left out."""
    assert flags[0] == flags[-1] == 0
    return [len(run) for run in "".join(map(str, flags[1:-1])).split("0")] if len(flags) > 1 else []


def kept_by(agrees: Sequence[bool]) -> list[int]:
    """What a verifier keeps of a draft that is right at these positions of the output."""
    position, found = 1, []
    while position < len(agrees):
        kept, most = 0, min(DRAFT_LENGTH, len(agrees) - position - 1)
        while kept < most and agrees[position + kept]:
            kept += 1
        found.append(kept)
        position += kept + 1
    return found


@pytest.mark.parametrize("topology", ["unified", pytest.param("pdv", marks=pytest.mark.slow)])
def test_acceptance_is_what_the_tokens_and_the_draft_model_say(
    start_server: Callable[..., ServerProcess], tiny_pair: TinyPair, tmp_path: Path, topology: str
) -> None:
    server = start_server(
        "--topology", topology, "--num-speculative-tokens", str(DRAFT_LENGTH),
        "--no-enable-prefix-caching",
    )  # fmt: skip
    truth = Truth(candidates=(topology,), twin=False, concurrencies=(3,), blocks=1)
    run = truth.run()
    folder = ResultsFolder(tmp_path)
    folder.begin(run)
    with Loop(server.ready["ipc"]) as loop:
        for block in range(2):
            window = loop.run(
                Workload(PROMPTS, Lengths("uniform", 1, 24)),
                run.loads[0],
                block=block,
                ramp=0.1,
                seconds=0.5,
                timelines=not block,
            )
            cell = CellRecord(
                schema_version=SCHEMA_VERSION,
                id=f"block-{block}",
                pair="shipped",
                candidate=topology,
                load="C=3",
                block=block,
                order=0,
                followed=not block,
                started="",
                window_ns=window.window_ns,
                counts=window.counts,
                uses=window.uses,
            )
            folder.add(cell, window.records)
    server.stop()
    found = analyse(folder).cell("shipped", topology, "C=3")
    assert found.time_spent is not None
    assert sum(found.time_spent.states.values()) == pytest.approx(1)
    lines = (tmp_path / "requests" / "block-1.jsonl").read_text(encoding="utf-8").splitlines()
    present = [request for request in map(json.loads, lines) if request["ended_ns"] >= 0]
    whole = [request for request in present if request["finish"] == "length"]
    assert len(whole) > 3
    draft = AutoModelForCausalLM.from_pretrained(tiny_pair.draft, dtype=torch.float32)
    sums = {"cycles": 0, "drafted": 0, "accepted": 0}
    for request in whole:
        tokens, told = len(request["ids"]), request["speculation"]
        runs = runs_of(request["drafted"])
        # No draft token is proposed beyond max_tokens, so none that was accepted is cut off.
        assert told["accepted"] == sum(request["drafted"]) == sum(runs)
        assert (told["cycles"], told["drafted"]) == proposals(tokens, runs)
        assert sum(told["accepted_per_pos"]) == told["accepted"]
        assert runs == kept_by(agreement(draft, request)), "the draft model says otherwise"
        for name in sums:
            sums[name] += told[name]
    # Of what was cut off, more may have been judged than was sent.
    for request in present:
        if request["finish"] != "length":
            assert request["speculation"]["accepted"] >= sum(request["drafted"])
            for name in sums:
                sums[name] += request["speculation"][name]
    assert {name: getattr(found.speculation, name) for name in sums} == sums
    rate, length = found.speculation.acceptance_rate, found.speculation.acceptance_length
    assert rate is not None
    assert length is not None
    assert rate.value == pytest.approx(sums["accepted"] / sums["drafted"])
    assert length.value == pytest.approx(1 + sums["accepted"] / sums["cycles"])
    assert 0.1 < rate.value < 1


def agreement(draft: Any, request: dict[str, Any]) -> list[bool]:
    """Where the draft model's greedy token, after all tokens before it, is the output's."""
    prompt, ids = PROMPTS[request["prompt"]], request["ids"]
    with torch.inference_mode():
        logits = draft(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    return [bool(same) for same in logits.argmax(-1) == torch.tensor(ids)]
