"""Which GPU and which stream a process computes on, with a fake of torch.cuda, and what waits."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_driver import engine_config
from tiny_model import TinyPair

from launcher import handoff_checks
from launcher.handoff_checks import check_handoff
from pdv_mp.config import ConfigError, EngineConfig
from pdv_mp.resources.resource_plan import pick_device
from pdv_mp.resources.resources import build_resources
from pdv_mp.speculation.sampling import SamplingTable
from pdv_mp.stages import prefill as prefill_module
from pdv_mp.stages.messages import PrefillOrder
from pdv_mp.stages.prefill import PrefillStage
from pdv_mp.topology import ROWS
from pdv_mp.workers.device import finish, use_device


class FakeCuda:
    """Notes what is asked of torch.cuda."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        replacements = {
            "is_available": lambda: True,
            "set_device": lambda device: self.calls.append(("device", str(device))),
            "Stream": lambda device, priority: (str(device), priority),
            "set_stream": lambda stream: self.calls.append(("stream", *stream)),
            "current_stream": lambda device: self,
        }
        for name, value in replacements.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def synchronize(self) -> None:
        self.calls.append(("wait",))


def config_of(topology: str, **options: Any) -> EngineConfig:
    config = EngineConfig.from_options(**options)
    return dataclasses.replace(config, topology=topology, table=ROWS[topology])


@pytest.mark.parametrize(
    ("topology", "process", "priority"),
    [
        ("unified", "worker-0", -1),
        ("pd", "prefill-0", 0),
        ("pd", "decode-0", -1),
        ("pdv", "prefill-0", 0),
        ("pdv", "draft-0", -1),
        ("pdv", "verify-0", -1),
    ],
)
def test_decoding_goes_before_prefill(
    topology: str, process: str, priority: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(monkeypatch)
    use_device(config_of(topology, device="cuda:1"), process)
    assert cuda.calls == [("device", "cuda:1")]
    use_device(config_of(topology, device="cuda:1", streams=2), process)
    assert cuda.calls[1:] == [("device", "cuda:1"), ("stream", "cuda:1", priority)]


def test_pools_compute_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    use_device(config_of("pdv", device="cuda", streams=2), "pools")
    assert cuda.calls == [("device", "cuda:0")]


def test_a_cpu_has_no_streams() -> None:
    use_device(config_of("pdv", device="cpu"), "draft-0")
    config = config_of("pdv", device="cpu", streams=2)
    for refuse in (use_device, check_handoff):
        with pytest.raises(ConfigError, match="--streams 2 is for a GPU, and the device here is"):
            refuse(config, "draft-0" if refuse is use_device else ROWS["pdv"])


@pytest.mark.parametrize(("gpus", "refused"), [(0, True), (1, False), (None, False)])
def test_streams_where_the_device_is_to_be_found(
    gpus: int | None, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handoff_checks, "visible_gpus", lambda: gpus)
    config = config_of("pdv", streams=2)
    with pytest.raises(ConfigError) if refused else contextlib.nullcontext():
        check_handoff(config, ROWS["pdv"])


def test_a_gpu_without_a_number_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    assert pick_device("cuda") == pick_device("auto") == torch.device("cuda", 0)


def test_waiting_is_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    finish(torch.device("cpu"))
    assert cuda.calls == []
    finish(torch.device("cuda:0"))
    assert cuda.calls == [("wait",)]


def test_a_chunk_is_complete_before_it_is_told_of(
    tiny_pair: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that ends no prompt, of which nothing is read back: its slot may be withdrawn next,
    and its blocks be another process's."""
    resources = build_resources(engine_config(Path(tiny_pair.verifier), Path(tiny_pair.draft)))
    waited: list[torch.device] = []
    monkeypatch.setattr(prefill_module, "finish", waited.append)
    stage = PrefillStage(resources.target, resources.draft, 4, 128)
    one = np.ones(1, np.int64)
    stage.put(
        PrefillOrder(
            slots=one,
            starts=0 * one,
            lengths=20 * one,
            ids=np.arange(20, 40, dtype=np.int32),
            fills_draft=np.ones(1, np.bool_),
            logprobs=-one,
            prompt_logprobs=-one,
            sampling=SamplingTable(4).get(one),
        )
    )
    for number, length in enumerate((8, 8, 4)):
        batch = stage.form(8)
        assert batch is not None
        assert batch.lengths.tolist() == [length]
        result = stage.run(batch)
        assert len(waited) == min(number + 1, 2), "reading the last chunk's token waits by itself"
    assert result.slots.tolist() == [1]
