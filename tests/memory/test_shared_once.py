"""Several processes, one copy: what they take of weights and KV, as the kernel counts it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pools_harness import PoolsHarness, PoolsWorker, pools_config
from server_load import load, outputs
from server_process import ServerProcess
from tiny_model import write_tokenizer

from pdv_mp.memory.report import buffer_memory, process_memory
from pdv_mp.memory.shared import SharedBuffer

MEGABYTE = 1 << 20
WORKERS = {"unified": ("worker-",), "pdv": ("prefill-", "draft-", "verify-")}


def write_shape(folder: Path, hidden: int, layers: int) -> Path:
    """A checkpoint without weights, for --load-format dummy: 15 hidden² parameters a layer."""
    folder.mkdir()
    shape = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 300,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 128,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    write_tokenizer(folder)
    return folder


def totals(reports: list[dict[str, Any]], field: str) -> dict[str, int]:
    """Bytes by buffer over all processes."""
    names = {name for report in reports for name in report["buffers"]}
    return {
        name: sum(report["buffers"].get(name, {field: 0})[field] for report in reports)
        for name in names
    }


def pools_report(harness: PoolsHarness) -> dict[str, Any]:
    """The same report of the pools process, made from outside."""
    pid = harness.processes["pools"].pid
    buffers = {
        name: {"rss": b.rss, "pss": b.pss, "touched_alone": b.touched_alone, "copied": b.copied}
        for name, b in buffer_memory(pid).items()
    }
    return {"pss": process_memory(pid).pss, "buffers": buffers}


def work(workers: dict[str, PoolsWorker]) -> None:
    """Every stage reads all its weights and a prompt's KV, as in a request's life."""
    prompt = [(7 * index) % 300 for index in range(200)]
    slot = workers["verify-0"].ask("acquire", 256)
    for role in ("target", "draft"):
        workers["prefill-0"].ask("forward", role, slot, prompt)
    workers["draft-0"].ask("forward", "draft", slot, prompt)
    workers["verify-0"].ask("forward", "target", slot, prompt)


def check_one_copy(harness: PoolsHarness, scale: int) -> list[dict[str, Any]]:
    """Weights and KV lie in memory once, whoever has mapped them; the reports of all processes."""
    harness.start_pools()
    workers = {name: harness.start_worker(name) for name in ("prefill-0", "draft-0", "verify-0")}
    for worker in workers.values():
        assert worker.attached()["attached"]
    work(workers)
    reports = [pools_report(harness), *(worker.ask("memory") for worker in workers.values())]
    page = os.sysconf("SC_PAGE_SIZE")
    for name, copied in totals(reports, "copied").items():
        assert copied == 0, f"{name} lies in memory twice"
    alone, pss, rss = (totals(reports, field) for field in ("touched_alone", "pss", "rss"))
    for role in ("target", "draft"):
        name = f"pdv_mp-panels-{role}"
        assert alone[name] == 0, "weights belong to all that map them"
        assert rss[name] > 2.9 * pss[name] > 2.9 * scale
        kv = f"pdv_mp-kv-{role}-0"
        assert 0 < pss[kv] < rss[kv]
        assert alone[kv] <= 0.1 * rss[kv] + 16 * page, "both processes see the same rows"
    return reports


def test_three_lanes_have_one_copy_of_weights_and_kv(tmp_path: Path) -> None:
    target = write_shape(tmp_path / "target", 512, 4)
    draft = write_shape(tmp_path / "draft", 512, 2)
    config = pools_config("pdv", target, draft, load_format="dummy", kv_cache_memory=64 * MEGABYTE)
    with PoolsHarness(config) as harness:
        check_one_copy(harness, scale=20 * MEGABYTE)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_lanes_cost_little_more_than_one_process(tmp_path: Path) -> None:
    """A pair of a hundred million parameters: what all processes take together."""
    target = write_shape(tmp_path / "target", 1024, 5)
    draft = write_shape(tmp_path / "draft", 1024, 2)
    options = {"load_format": "dummy", "kv_cache_memory": 64 * MEGABYTE}
    with PoolsHarness(pools_config("unified", target, draft, **options)) as harness:
        worker = harness.start_worker("worker-0")
        assert worker.attached()["attached"]
        work(dict.fromkeys(("prefill-0", "draft-0", "verify-0"), worker))
        unified = worker.ask("memory")["pss"]
    with PoolsHarness(pools_config("pdv", target, draft, **options)) as harness:
        reports = check_one_copy(harness, scale=100 * MEGABYTE)
    together = sum(report["pss"] for report in reports)
    assert unified > 400 * MEGABYTE
    assert together < 1.25 * unified + 3 * 250 * MEGABYTE


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_split_server_costs_little_more_than_one_process(
    tmp_path: Path, run_place: object
) -> None:
    """The same of whole servers, by what they say of themselves while they serve."""
    models = [
        *("--model", str(write_shape(tmp_path / "target", 1024, 5))),
        *("--draft-model", str(write_shape(tmp_path / "draft", 1024, 2))),
        *("--load-format", "dummy", "--device", "cpu", "--kv-cache-memory", "64M"),
    ]
    for model in ("target", "draft"):
        (tmp_path / model / "model.safetensors").touch()  # the launcher wants to see one
    taken: dict[str, int] = {}
    counted: dict[str, int] = {}
    for topology in ("unified", "pdv"):
        with ServerProcess(*models, "--topology", topology) as server:
            server.wait_ready()
            prompt = {"prompt_ids": [(7 * index) % 300 for index in range(200)], "max_tokens": 20}
            assert len(outputs(server, [{**prompt, "ignore_eos": True}])[0][0]) == 20
            with load(server) as client:
                memory = client.info()["memory"]
            served = {name: pid for name, pid in server.pids.items() if name != "launcher"}
            assert set(memory) <= set(server.pids)
            counted[topology] = len(served)
            taken[topology] = sum(process_memory(pid).pss for pid in served.values())
            workers = [name for name in served if name.startswith(WORKERS[topology])]
            assert len(workers) == len(WORKERS[topology])
            for name in workers:
                for buffer, part in buffer_memory(server.pids[name]).items():
                    assert part.copied == 0, f"{name} has its own pages of {buffer}"
                    if topology == "pdv" and "panels" in buffer:
                        assert part.touched_alone == 0, f"{buffer} belongs to {name} alone"
                        assert part.rss > 2.9 * part.pss
                if topology == "pdv":
                    assert memory[name]["private"] < 250 * 10**6
            assert server.stop().code == 0
    assert taken["unified"] > 400 * 10**6
    extra = counted["pdv"] - counted["unified"]
    assert taken["pdv"] <= 1.25 * taken["unified"] + extra * 250 * 10**6


def test_a_copy_is_seen() -> None:
    """The report tells a page that replaces one of a buffer from pages that are merely new."""
    import mmap

    page = mmap.PAGESIZE
    buffer = SharedBuffer.create(8 * page, "pdv_mp-report-test")
    tensor = buffer.tensor()
    tensor[: 4 * page] = 1
    found = buffer_memory(os.getpid())["pdv_mp-report-test"]
    assert (found.rss, found.pss, found.touched_alone, found.copied) == (4 * page,) * 3 + (0,)
    private = mmap.mmap(buffer.fd, 8 * page, mmap.MAP_PRIVATE)
    private[:page] = bytes(page)
    found = buffer_memory(os.getpid())["pdv_mp-report-test"]
    assert found.copied == page
    private.close()
    buffer.close()


def test_a_process_that_has_gone_has_no_report() -> None:
    for report in (process_memory, buffer_memory):
        with pytest.raises(OSError, match="No such file"):
            report(1 << 30)
