"""What a worker loads: devices, budgets, pairs with padded vocabularies, no draft at all."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_driver import Request, make_worker, run
from tiny_model import VOCABULARY, TinyPair
from transformers import LlamaConfig, LlamaForCausalLM

from pdv_mp.config import ConfigError, EngineConfig
from pdv_mp.model.architecture import ModelConfig
from pdv_mp.resources.resource_plan import checkpoint_name, make_plan, pick_device, pick_dtype
from pdv_mp.resources.resources import Resources, build_resources
from pdv_mp.topology import ROWS


def llama(folder: Path, vocabulary: int, seed: int) -> Path:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=0,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("verifier", "draft"), [(40, 24), (24, 40)])
def test_ids_that_only_one_model_knows_are_never_emitted(
    verifier: int, draft: int, tmp_path: Path
) -> None:
    worker = make_worker(
        llama(tmp_path / "verifier", verifier, 1), llama(tmp_path / "draft", draft, 2)
    )
    requests = [
        Request(prompt=(i % 24, 3), max_tokens=20, temperature=i % 2 * 3.0, seed=i)
        for i in range(40)
    ]
    results = run(worker, requests, np.random.default_rng(0))
    emitted = {token for result in results for token in result.ids}
    assert max(emitted) == 23
    assert worker.counters.accepted_tokens > 0


def test_a_verifier_serves_without_a_draft(tiny_pair: TinyPair) -> None:
    requests = [Request(prompt=(5, 6, i + 1), max_tokens=9) for i in range(6)]
    alone = make_worker(tiny_pair.verifier, None)
    pair = make_worker(tiny_pair.verifier, tiny_pair.draft)
    results = run(alone, requests, np.random.default_rng(0))
    expected = run(pair, requests, np.random.default_rng(0))
    assert [result.ids for result in results] == [result.ids for result in expected]
    assert alone.counters.draft_forwards == alone.counters.drafted_tokens == 0


def test_facts_are_plain_data_and_true(tiny_pair: TinyPair) -> None:
    config = EngineConfig.from_options(
        model=str(tiny_pair.verifier),
        draft_model=str(tiny_pair.draft),
        device="cpu",
        max_num_seqs=10,
        kv_cache_memory=1 << 20,
        block_size=8,
    )
    facts = build_resources(config).facts(config)
    # float32 keys and values of 2 heads of 8 in 2 + 1 layers: 384 bytes a token.
    assert facts["kv_blocks"] == (1 << 20) // (8 * 384)
    assert facts["max_request_tokens"] == min(512, facts["kv_blocks"] * 8) == 512
    assert facts["credits"] == 12
    assert facts["vocab_size"] == VOCABULARY
    assert facts["dtype"] == "float32"
    assert facts["fingerprint"] == config.fingerprint


def test_a_budget_without_room_for_one_block_is_refused(tiny_pair: TinyPair) -> None:
    config = EngineConfig.from_options(
        model=str(tiny_pair.verifier), draft_model="none", device="cpu", kv_cache_memory=100
    )
    with pytest.raises(ConfigError, match="--kv-cache-memory is too small"):
        build_resources(config)


def test_what_a_process_does_not_have_is_named(tiny_pair: TinyPair) -> None:
    whole = build_resources(
        EngineConfig.from_options(
            model=str(tiny_pair.verifier), draft_model=str(tiny_pair.draft), device="cpu"
        )
    )
    assert whole.pools is whole.pools, "there is one account"
    lane = Resources(
        whole.plan,
        whole.num_blocks,
        {"draft": whole.runners["draft"]},
        {"draft": whole.caches["draft"]},
    )
    assert lane.has_draft
    assert lane.draft is whole.draft
    with pytest.raises(RuntimeError, match="does not compute the verifier"):
        _ = lane.target
    with pytest.raises(RuntimeError, match="lives in the process with the scheduler"):
        _ = lane.pools


def test_a_plan_counts_every_byte_before_there_is_one(tiny_pair: TinyPair) -> None:
    for layout, names in (
        ("contiguous", {"kv", "store"}),
        ("paged", {"kv", "table"}),
    ):
        config = EngineConfig.from_options(
            model=str(tiny_pair.verifier),
            draft_model=str(tiny_pair.draft),
            device="cpu",
            kv_layout=layout,
            max_num_seqs=10,
        )
        plan = make_plan(dataclasses.replace(config, table=ROWS["baseline"]))
        num_blocks = plan.count_blocks(1 << 22)
        assert num_blocks == (1 << 22) // 4 // (16 * 384)
        buffers = {buffer.name: buffer for buffer in plan.kv_buffers(num_blocks)}
        assert set(buffers) == {
            f"{name}-{role}-{replica}"
            for name in names
            for role in ("target", "draft")
            for replica in range(4)
        }
        token = 256  # bytes of the verifier's keys and values
        if layout == "paged":
            assert buffers["kv-target-3"].nbytes == (num_blocks + 1) * 16 * token
            assert buffers["table-draft-0"].nbytes == 2 * (512 // 16) * 4
            assert not buffers["table-draft-0"].on_device
        else:
            # A batch of one has two slots, so that the next request is ready.
            assert buffers["kv-target-3"].nbytes == 2 * 512 * token
            assert buffers["store-target-0"].nbytes == num_blocks * 16 * token


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "meta"])
def test_devices_that_cannot_serve_are_named(name: str) -> None:
    with pytest.raises(ConfigError, match=name.split(":")[0]):
        pick_device(name)


def test_dtype_follows_the_device(tiny_pair: TinyPair) -> None:
    config = ModelConfig.from_folder(tiny_pair.verifier)
    assert pick_dtype("auto", config, torch.device("cpu")) is torch.float32
    assert pick_dtype("bfloat16", config, torch.device("cpu")) is torch.bfloat16


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/models/tiny-draft", "tiny-draft"),
        ("/cache/models--owner--small-llama/snapshots/0123abcd", "owner/small-llama"),
    ],
)
def test_a_checkpoint_is_named_as_people_know_it(folder: str, name: str) -> None:
    assert checkpoint_name(Path(folder)) == name


def test_a_contiguous_layout_is_for_the_cpu(
    tiny_pair: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pdv_mp.resources.resource_plan.pick_device", lambda name: torch.device("meta")
    )
    config = EngineConfig.from_options(
        model=str(tiny_pair.verifier),
        draft_model="none",
        load_format="dummy",
        dtype="float32",
        kv_layout="contiguous",
        kv_cache_memory=1 << 20,
    )
    with pytest.raises(ConfigError, match="--kv-layout contiguous is for a CPU"):
        build_resources(config)
