"""Whole drafts of an emulated device."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from emulation.flat_table import flat_table

from launcher.checks import prepare
from pdv_mp.config import EngineConfig
from pdv_mp.emulation.emulator import Emulator
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.resources.resources import ModelRunner, build_resources
from pdv_mp.sampling_params import SamplingParams
from pdv_mp.speculation.sampling import SamplingTable

SLOTS, FED, STARTS = np.array([0, 2, 5]), np.array([1, 2, 1]), np.array([10, 20, 30])
LENGTHS = np.array([4, 1, 2])


def resources_of(folder: Path) -> tuple[Emulator, ModelRunner]:
    table = flat_table()
    # A step takes a microsecond for each sequence and one for each ten tokens in its cache.
    table["steps"]["draft"] = {
        "sequences": [1, 11],
        "rows": [1],
        "context": [0, 100],
        "microseconds": [[[1, 11]], [[11, 21]]],
    }
    path = folder / "table.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    resources = build_resources(
        prepare(EngineConfig.from_options(device=f"emulated:{path}", port=0))
    )
    assert resources.emulator is not None
    assert resources.draft is not None
    return resources.emulator, resources.draft


def test_a_whole_draft_has_the_tokens_of_its_steps_in_their_time(tmp_path: Path) -> None:
    emulator, runner = resources_of(tmp_path)
    sampling = SamplingTable(8)
    for slot in SLOTS.tolist():
        sampling.set(slot, SamplingParams(temperature=0.5 * slot), 100 + slot)
    base = STARTS + FED
    rows = sampling.rows(SLOTS, base)
    assert runner.drafter is not None
    assert runner.drafter.can_draft(rows)
    ids = np.arange(FED.sum()) + 1
    batch = ForwardBatch.build(
        ids, FED, STARTS, SLOTS, logit_rows=np.cumsum(FED) - 1, device=torch.device("cpu")
    )
    found = runner.drafter.draft(batch, runner.cache, LENGTHS, runner.vocab_size, rows)
    assert found.shape == (3, 4)
    for row, (slot, length) in enumerate(zip(SLOTS, LENGTHS, strict=True)):
        places = base[row] + np.arange(length)
        steps = emulator.tokens.drafts(sampling.rows(np.full(length, slot), places))
        assert found[row].tolist() == [*steps.tolist(), *[-1] * (4 - length)]

    report = emulator.report()
    assert report["steps"] == 1
    first = 3 + 20 / 10
    further = (2 + (11 + 31) / 2 / 10) + (1 + 12 / 10) + (1 + 13 / 10)
    assert report["device_ns"] == round(1000 * (first + further))
    beyond = LENGTHS + runner.cache.max_model_len
    with pytest.raises(ValueError, match="lies beyond max_model_len"):
        runner.drafter.draft(batch, runner.cache, beyond, runner.vocab_size, rows)
    emulator.close()
