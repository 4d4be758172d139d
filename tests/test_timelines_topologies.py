"""Timelines under load with real processes, in every topology."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
from server_process import ServerProcess
from tiny_model import VOCABULARY

from pdv_mp.client.client import AsyncClient, Completion
from pdv_mp.sampling_params import SamplingParams
from pdv_mp.timeline import STATES, orchestration_share
from pdv_mp.workers.trace import PART_PREFIX

REQUESTS = 150
SPLIT = {"pd": ("prefill",), "pdv": ("prefill", "draft")}
"""Stages that have a process of their own."""


async def serve(endpoint: str) -> list[Completion]:
    rng = np.random.default_rng(0)
    params = [
        SamplingParams(
            max_tokens=int(rng.integers(1, 25)),
            ignore_eos=True,
            speculate=bool(rng.random() < 0.8),
        )
        for _ in range(REQUESTS)
    ]
    prompts = [
        rng.integers(1, VOCABULARY, int(rng.integers(1, 60))).tolist() for _ in range(REQUESTS)
    ]
    async with AsyncClient(endpoint) as client:

        async def one(index: int) -> Completion:
            await asyncio.sleep(index * 0.005)
            stream = await client.generate(prompts[index], params[index], timeline=True)
            return await stream.result()

        return list(await asyncio.gather(*map(one, range(REQUESTS))))


@pytest.mark.parametrize("topology", ["unified", "baseline", "pd", "pdv"])
def test_states_add_up_under_load(
    start_server: Callable[..., ServerProcess], topology: str
) -> None:
    server = start_server("--topology", topology, "--max-num-seqs", "16")
    assert list(server.run_dir.glob(f"{PART_PREFIX}*")) == [], "nobody asked for a trace"
    good = 0
    seen: set[str] = set()
    for completion in asyncio.run(serve(server.endpoint)):
        timeline = completion.timeline
        assert timeline is not None
        states = timeline["states"]
        seen |= set(states)
        assert set(states) | set(timeline["overlapped"]) <= set(STATES)
        total = sum(entry["ns"] for entry in states.values())
        whole = all(entry["ns"] >= 0 and entry["n"] > 0 for entry in states.values())
        good += whole and abs(total - timeline["e2e_ns"]) <= 0.01 * timeline["e2e_ns"]
        assert 0 < orchestration_share(timeline) < 1
    assert good >= 0.99 * REQUESTS
    assert {"prefill.compute", "draft.compute", "verify.compute", "verify>front.wire"} <= seen
    for stage in ("prefill", "draft"):
        crossed = {f"{stage}>verify.wire", f"verify>{stage}.wire", f"{stage}.publish"}
        if stage in SPLIT.get(topology, ()):
            assert crossed | {f"{stage}.inbox", f"{stage}.batch"} <= seen
        else:
            assert not {name for name in seen if ">" in name and stage in name}
