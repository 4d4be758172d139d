"""KV that goes from a cache of one worker to that of another: rows, bytes counted, nothing left."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_driver import Request, make_worker, run
from pools_harness import pools_config
from split_engine import make_split
from tiny_model import VOCABULARY, TinyPair

from pdv_mp.lanes.stamps import BatchStamps
from pdv_mp.memory.contiguous_kv_cache import ContiguousKVCache
from pdv_mp.memory.kv_cache import KVCache
from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.model.architecture import ModelConfig, RopeConfig
from pdv_mp.resources.kv_handoff import CopySender, HandleSender, KVReceiver, KVSender
from pdv_mp.resources.planned_caches import lane_cache
from pdv_mp.resources.resource_plan import DRAFT, TARGET, make_plan
from pdv_mp.stages.kv_rows import KVBuffer, KVRows
from pdv_mp.stages.messages import Prefilled
from pdv_mp.wire import stages as wire
from pdv_mp.wire.frames import WireError

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=50,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=16,
    rms_norm_eps=1e-5,
    rope=RopeConfig(10000.0),
    max_position_embeddings=4096,
)
SENDERS = {"copy": CopySender, "handle": HandleSender}
TOKENS = 37


def make_cache(layout: str, dtype: torch.dtype = torch.float32) -> KVCache:
    if layout == "contiguous":
        return ContiguousKVCache(CONFIG, 6, 64, dtype, 16)
    cache = PagedKVCache(CONFIG, 18, 16, 6, 64, dtype, "cpu")
    for slot in range(6):
        cache.set_blocks(slot, [slot, 17 - slot, 6 + slot])
    return cache


def filled(layout: str, dtype: torch.dtype = torch.float32) -> KVCache:
    cache = make_cache(layout, dtype)
    rows = torch.randn(cache.rows_shape(TOKENS), generator=torch.Generator().manual_seed(2))
    cache.import_rows(3, 0, rows.to(dtype))
    return cache


def exported(cache: KVCache, slot: int) -> torch.Tensor:
    return cache.export_rows(slot, 0, torch.empty(cache.rows_shape(TOKENS), dtype=cache.dtype))


def sent(rows: list[KVRows]) -> list[KVRows]:
    """The rows after a message has carried them."""
    none = np.zeros(0, np.int64)
    result = Prefilled(none, none, none, none)
    message = wire.PrefillResult(
        result=result,
        batch=BatchStamps(1, 2, 3),
        orders=np.zeros((0, 4), np.int64),
        busy_ns=none,
        rows=rows,
    )
    decoded, _ = wire.decode(bytes(wire.encode(message, 0)), 1)
    assert isinstance(decoded, wire.PrefillResult)
    return list(decoded.rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layouts", [("contiguous",) * 2, ("paged", "contiguous"), ("paged",) * 2])
@pytest.mark.parametrize("kind", SENDERS)
def test_the_receiver_has_the_senders_rows(
    kind: str, layouts: tuple[str, str], dtype: torch.dtype
) -> None:
    source, target = filled(layouts[0], dtype), make_cache(layouts[1], dtype)
    sender: KVSender = SENDERS[kind]({TARGET: source, DRAFT: source}, 18)
    wanted = exported(source, 3)
    rows = sent(sender.pack(3, TOKENS, with_draft=False))
    assert [part.role for part in rows] == [TARGET], "a draft that nobody wants is not sent"
    assert rows[0].nbytes == TOKENS * CONFIG.kv_bytes_per_token(dtype)
    assert KVReceiver({TARGET: target}).take(replace(rows[0], slot=1))
    assert torch.equal(exported(target, 1), wanted)
    sender.close()


def test_buffers_are_freed_when_they_are_released_or_withdrawn() -> None:
    source = filled("contiguous")
    sender = HandleSender({TARGET: source, DRAFT: source}, 18)
    before = len(os.listdir("/proc/self/fd"))
    rows = sender.pack(3, TOKENS, with_draft=True)
    more = sender.pack(2, TOKENS, with_draft=True)
    assert sender.num_buffers == 4
    assert len(os.listdir("/proc/self/fd")) > before
    sender.release([int(rows[0].number or 0)])
    sender.release([int(rows[0].number or 0)])  # what is gone is gone
    assert sender.num_buffers == 3
    sender.withdraw([2])
    assert sender.num_buffers == 1
    receiver = KVReceiver({TARGET: make_cache("paged"), DRAFT: make_cache("paged")})
    assert [receiver.take(part) for part in rows + more] == [False, True, False, False]
    sender.close()
    assert sender.num_buffers == 0
    assert len(os.listdir("/proc/self/fd")) == before


def test_rows_of_a_process_that_has_died_are_lost() -> None:
    """Its memory is gone with it, and whoever looks for it says so instead of failing."""
    cache = make_cache("contiguous")
    code = (
        "import sys\nfrom pdv_mp.memory.shared import SharedBuffer\n"
        f"buffer = SharedBuffer.create({cache.rows_bytes(TOKENS)}, 'pdv_mp-handoff-test')\n"
        "print(buffer.fd, buffer.inode, flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        fd, inode = map(int, child.stdout.readline().split())
        place = KVBuffer(1, child.pid, fd, inode, cache.rows_bytes(TOKENS))
        rows = KVRows(3, TARGET, TOKENS, place)
        receiver = KVReceiver({TARGET: cache})
        assert receiver.take(rows)
        assert not receiver.take(replace(rows, content=replace(place, inode=inode + 1)))
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not receiver.take(rows), "it has ended, though nobody has asked for its status"
    assert not receiver.take(rows)


def test_rows_of_another_size_or_model_are_refused() -> None:
    cache = make_cache("contiguous")
    rows = KVRows(3, TARGET, TOKENS, np.zeros(cache.rows_bytes(TOKENS) - 1, np.uint8))
    with pytest.raises(WireError, match="37 tokens of the target model come with"):
        KVReceiver({TARGET: cache}).take(rows)
    with pytest.raises(WireError, match="no cache here for KV of the model 'target'"):
        KVReceiver({DRAFT: cache}).take(rows)


def test_pages_beyond_the_budget_are_given_back() -> None:
    source = make_cache("contiguous")
    assert isinstance(source, ContiguousKVCache)
    sender = CopySender({TARGET: source}, num_blocks=4)
    for slot in range(6):
        source.import_rows(slot, 0, torch.ones(source.rows_shape(60)))
        sender.pack(slot, 60, with_draft=False)
        assert source.committed_bytes() <= 2 * source.rows_bytes(4 * 16)


def some_requests(count: int) -> list[Request]:
    rng = np.random.default_rng(4)
    return [
        Request(
            tuple(rng.integers(1, VOCABULARY, int(rng.integers(1, 90))).tolist()),
            max_tokens=int(rng.integers(2, 30)),
            temperature=float(rng.choice([0.0, 1.0])),
            seed=index,
            speculate=bool(rng.random() < 0.8),
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("layout", ["contiguous", "paged"])
@pytest.mark.parametrize("kind", SENDERS)
@pytest.mark.parametrize("stages", [("prefill",), ("prefill", "draft")], ids=["pd", "pdv"])
def test_bytes_are_counted_and_drafts_as_good_as_ever(
    stages: tuple[str, ...], kind: str, layout: str, tiny_pair: TinyPair
) -> None:
    requests = some_requests(30)
    options = {"max_model_len": 128, "kv_layout": layout, "num_speculative_tokens": 3}
    split = make_split(
        tiny_pair.verifier,
        tiny_pair.draft,
        stages,
        np.random.default_rng(1),
        kv_handoff=kind,
        max_num_batched_tokens=64,
        **options,
    )
    for stage in stages:
        split._revive(stage)
        split._take_result(stage)
    results = run(split, requests, np.random.default_rng(2))
    plain = make_worker(tiny_pair.verifier, tiny_pair.draft, **options)
    expected = run(plain, requests, np.random.default_rng(2))
    # The draft has its rows of the prompt: it proposes what it would have proposed there.
    assert results == expected
    target, draft = (
        split.verify._target.config.kv_bytes_per_token("float32"),
        split._shared.caches[DRAFT].rows_bytes(1),
    )
    tokens = sum(len(request.prompt) for request in requests)
    drafted = sum(len(request.prompt) for request in requests if request.speculate)
    edges = split.handoffs.as_dict()
    first = target * tokens
    if stages == ("prefill",) or kind == "copy":
        first += draft * drafted
    assert edges["prefill>verify"]["kv_bytes"] == first
    if "draft" in stages:
        # A request that ends with its first token is never drafted for.
        onward = edges["verify>draft"]["kv_bytes"]
        least = draft * sum(
            len(request.prompt)
            for request, result in zip(requests, results, strict=True)
            if result.drafted
        )
        assert least == onward > 0
    assert split.num_buffers == 0
    assert split.counters.cached_tokens == 0


def test_nothing_is_copied_where_the_caches_are_shared(tiny_pair: TinyPair) -> None:
    split = make_split(
        tiny_pair.verifier, tiny_pair.draft, ("prefill", "draft"), np.random.default_rng(1)
    )
    run(split, some_requests(5), np.random.default_rng(2))
    assert all(edge["kv_bytes"] == 0 for edge in split.handoffs.as_dict().values())


@pytest.mark.parametrize("layout", ["contiguous", "paged"])
def test_where_caches_are_private_only_block_tables_are_shared(
    layout: str, tiny_pair: TinyPair
) -> None:
    options = {"kv_layout": layout, "kv_cache_memory": 1 << 20}
    shared = make_plan(pools_config("pdv", tiny_pair.verifier, tiny_pair.draft, **options))
    private = make_plan(
        pools_config("pdv", tiny_pair.verifier, tiny_pair.draft, kv_handoff="copy", **options)
    )
    names = [buffer.name for buffer in private.kv_buffers(10)]
    assert names == (["table-target-0", "table-draft-0"] if layout == "paged" else [])
    assert private.count_blocks(1 << 20) == shared.count_blocks(1 << 20) // 2
    assert shared.prefix_caching
    assert not private.prefix_caching
    # A worker that does not compute the draft keeps the account of its blocks, and no memory.
    model = private.model(DRAFT)
    assert model is not None
    table = torch.zeros(1 << 20, dtype=torch.uint8) if layout == "paged" else None
    cache = lane_cache(private, model, 10, table, held=False)
    if isinstance(cache, PagedKVCache):
        assert cache.pool.device.type == "meta"
        cache.set_blocks(2, [4])
    else:
        assert isinstance(cache, ContiguousKVCache)
        assert cache.committed_bytes() == 0
