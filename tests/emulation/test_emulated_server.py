"""A real server on emulated devices: the tokens, and what it says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from emulation.flat_table import flat_table
from server_process import ServerProcess

from pdv_mp.assets import verifier_path
from pdv_mp.client.client import Client
from pdv_mp.emulation.tokens import EmulatedTokens
from pdv_mp.model.implementation import read_model
from pdv_mp.speculation.sampling import SamplingRows

TWO_DEVICES = """
tokenizers: 1
workers:
  - {name: prefill, stages: [prefill]}
  - {name: draft, stages: [draft], device: "emulated:#1"}
  - {name: verify, stages: [verify]}
"""


def expected(seed: int, prompt: int, count: int) -> list[int]:
    """What unified, or the verifier alone, would answer: the function of seed and position."""
    shape = read_model(verifier_path())
    tokens = EmulatedTokens(0.6, shape.vocab_size, shape.eos_token_ids)
    ones = np.ones(count)
    rows = SamplingRows(
        np.zeros(count, np.float32),
        np.zeros(count, np.int64),
        ones,
        ones,
        np.full(count, seed),
        np.arange(prompt, prompt + count),
    )
    found: list[int] = tokens.sample(torch.zeros(1), rows).tolist()
    return found


def test_a_split_server_on_two_devices_answers_as_one_alone(
    tmp_path: Path, run_place: object
) -> None:
    table, row = tmp_path / "flat.json", tmp_path / "two.yaml"
    table.write_text(json.dumps(flat_table()), encoding="utf-8")
    row.write_text(TWO_DEVICES, encoding="utf-8")
    options = ["--device", f"emulated:{table}", "--topology-file", str(row), "--check-invariants"]
    with ServerProcess(*options, "--num-speculative-tokens", "3") as server:
        server.wait_ready()
        with Client(server.ready["endpoint"]) as client:
            streams = [
                client.generate(f"def f{seed}(", seed=seed, max_tokens=50 + seed)
                for seed in range(12)
            ]
            answers = [stream.result() for stream in streams]
            info = client.info()
        server.stop()
    for seed, answer in enumerate(answers):
        assert answer.ids == expected(seed, answer.usage["prompt_tokens"], 50 + seed)
        assert answer.finish == "length"
    counters = info["counters"]
    share = counters["accepted_tokens"] / counters["drafted_tokens"]
    assert 0.2 < share < 0.5  # of three drafts, with 0.6 each: 0.39
    assert info["facts"]["device"] == "emulated:flat"
    assert info["facts"]["model"] == "emulated/flat"
    emulated = info["emulated"]
    forwards = ("prefill_forwards", "draft_prefill_forwards", "draft_forwards", "verify_forwards")
    assert emulated["steps"] >= counters["verify_forwards"] + counters["prefill_forwards"]
    assert emulated["device_ns"] % 200_000 == 0
    # A draft of three tokens is one launch of three steps.
    total = sum(counters[name] for name in forwards)
    assert emulated["steps"] < emulated["device_ns"] // 200_000 <= total
    assert sum(emulated["missed"].values()) == emulated["steps"]
