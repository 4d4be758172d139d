"""A real server of a pair that only transformers' modules compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from engine_driver import Request, Result
from oracle import Oracle
from server_process import ServerProcess, run_launch
from tiny_model import VOCABULARY, TinyPair
from transformers_families import make_model, make_pair, save

from pdv_mp.client.client import Client
from pdv_mp.sampling_params import SamplingParams
from pdv_mp.wire.engine import Finish


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return make_pair("opt", tmp_path_factory.mktemp("opt"), noise=0.04)


def models(pair: TinyPair) -> list[str]:
    return ["--model", str(pair.verifier), "--draft-model", str(pair.draft)]


def test_every_token_that_clients_get_is_the_verifiers_own(
    pair: TinyPair, start_server: Callable[..., ServerProcess]
) -> None:
    server = start_server(*models(pair), "--check-invariants")
    rng = np.random.default_rng(0)
    requests = [
        Request(
            prompt=tuple(rng.integers(1, VOCABULARY, int(rng.integers(1, 60))).tolist()),
            max_tokens=int(rng.integers(1, 25)),
            temperature=float(rng.choice([0.0, 0.8])),
            seed=number,
        )
        for number in range(20)
    ]
    results = []
    with Client(server.ipc) as client:
        for request in requests:
            params = SamplingParams(
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                seed=request.seed,
                ignore_eos=True,
            )
            stream = client.generate(list(request.prompt), params)
            ids = [token for chunk in stream for token in chunk.ids]
            results.append(Result(ids=ids, finish=Finish.LENGTH))
        info = client.info()
    verdicts = Oracle(pair.verifier).judge(requests, results)
    assert verdicts.wrong == []
    assert info["counters"]["accepted_tokens"] > 0
    server.stop()


def test_what_cannot_be_served_is_said_before_any_process_starts(
    pair: TinyPair, tmp_path: Path
) -> None:
    refused = run_launch(*models(pair), "--model-impl", "pdv", "--device", "cpu")
    assert refused.code == 2
    assert "OPTForCausalLM is not supported" in refused.messages[-1]
    folder = save(make_model("gemma2", 1, attn_logit_softcapping=30.0), tmp_path)
    refused = run_launch("--model", str(folder), "--device", "cpu")
    assert refused.code == 2
    assert "soft-caps attention scores" in refused.messages[-1]


def test_what_only_the_modules_show_ends_the_start(tmp_path: Path) -> None:
    folder = save(make_model("opt", 1), tmp_path)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"OPTForCausalLM"', '"OPTModel"'))
    refused = run_launch("--model", str(folder), "--device", "cpu", "--port", "0")
    assert refused.code == 2
    text = "\n".join(refused.messages)
    assert (
        "OPTModel is not supported: it is not one of transformers' causal language models" in text
    )
