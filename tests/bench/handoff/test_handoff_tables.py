"""Tables of what was measured: states, variants, processes, KV prices and ways to wait."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click import BadParameter
from pools_harness import pools_config
from tiny_model import TinyPair

from bench.handoff import codec, processes
from bench.handoff.cells import Cell, Timed, ratio_fields, ratio_of
from bench.handoff.figure import COLOURS, draw
from bench.handoff.kv_prices import EDGES, bytes_per_token, price_rows, price_table, wrong_counts
from bench.handoff.states import STATES, state_class
from bench.handoff.tables import edge_rows, process_rows, process_table, ratio_text
from bench.handoff.variants import EVERYTHING, Variant, families, variants_of
from bench.handoff.waits import wait_rows, wait_table
from bench.load.usage import Processes, Spent
from bench.statistics import ALPHA, MIN_BLOCKS
from pdv_mp import timeline
from pdv_mp.resources.resource_plan import make_plan
from pdv_mp.wire import stages
from pdv_mp.workers.handoffs import Handoff, report

TOKENS, PROMPT_TOKENS = 1000, 512


def edge(wire_us: Sequence[int] = (), kv_bytes: int = 0) -> dict[str, Any]:
    handoff = Handoff()
    handoff.messages, handoff.kv_bytes = len(wire_us), kv_bytes
    for wire in wire_us:
        handoff.arrivals.add(1000, wire * 1000, 2000, 0)
    return handoff.as_dict()


def cell(seconds: Sequence[float], use: processes.Use, **edges: dict[str, Any]) -> Cell:
    """Rounds of these lengths, alike in everything else."""
    found = report({name.replace("_to_", ">"): parts for name, parts in edges.items()})
    return Cell(
        [Timed((0, round(s * 1e9)), TOKENS, PROMPT_TOKENS, found, use) for s in seconds],
    )


USE = {"front": Spent(0.5, 100, 20), "worker": Spent(1.5, 3000, 50)}


def test_every_state_has_a_class_and_a_colour() -> None:
    assert {state_class(name) for name in timeline.STATES} == set(STATES)
    assert state_class("draft>verify.wire") == "wire"
    assert state_class("draft.busy") == state_class("front.queue") == "waiting"
    assert state_class("front.outbox") == "text"
    assert set(COLOURS) == set(STATES)


def test_the_figure_can_be_drawn(tmp_path: Path) -> None:
    rows = [
        {"topology": name, "concurrency": c, **{f"{s}_us_per_token": 10.0 * c for s in STATES}}
        for name in ("unified", "pdv")
        for c in (1, 8)
    ]
    draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_variants_have_the_options_in_their_names_and_the_common_ones() -> None:
    plain, spinning = variants_of(["pd", "pdv+wait=spin"], {"max_num_seqs": "8"})
    assert plain == Variant("pd", "pd", {"max-num-seqs": "8"})
    assert spinning == Variant("pdv+wait=spin", "pdv", {"max-num-seqs": "8", "wait": "spin"})
    assert (plain.spins, spinning.spins) == (False, True)
    assert variants_of(["pd"], {"wait": "spin"})[0].spins
    with pytest.raises(BadParameter):
        variants_of(["pdv+wait"], {})


def test_families_differ_in_one_option_only() -> None:
    variants = variants_of(EVERYTHING, {})
    assert [[v.name for v in family] for family in families(variants, "wait")] == [
        ["pd", "pd+wait=spin", "pd+wait=hybrid"],
        ["pdv", "pdv+wait=spin", "pdv+wait=hybrid"],
    ]
    assert [[v.name for v in family] for family in families(variants, "kv-handoff")] == [
        ["pd", "pd+kv-handoff=copy", "pd+kv-handoff=handle"],
        ["pdv", "pdv+kv-handoff=copy", "pdv+kv-handoff=handle"],
    ]
    assert families(variants[:4], "wait") == []
    spelled = variants_of(["pd+wait=spin", "pd+wait=block"], {})
    assert [v.name for v in families(spelled, "wait")[0]] == ["pd+wait=block", "pd+wait=spin"]
    assert families(variants_of(["pd+wait=spin", "pd+wait=hybrid"], {}), "wait") == []


def test_the_use_of_processes_is_what_they_did_between_two_samples() -> None:
    own = Processes({"self": os.getpid()})
    before = own.sample()
    event = threading.Event()
    thread = threading.Thread(target=lambda: [event.wait(0.001) for _ in range(50)])
    thread.start()
    for _ in range(50):
        event.wait(0.001)
    use = processes.between(before, own.sample())
    thread.join()
    assert use["self"].voluntary >= 50
    assert use["self"].cpu >= 0
    twice = processes.total([USE, USE])
    assert twice["worker"] == Spent(3.0, 6000, 100)
    assert processes.together(USE) == Spent(2.0, 3100, 70)


def test_use_is_told_per_token_of_each_process() -> None:
    rows = process_rows({("pd", 8): cell([1.0, 1.0], USE)})
    assert [row["process"] for row in rows] == ["front", "worker"]
    assert rows[1]["cpu_s_per_token"] == pytest.approx(1.5 / TOKENS)
    assert rows[1]["voluntary_switches_per_token"] == pytest.approx(3000 / TOKENS)
    assert rows[1]["involuntary_switches_per_token"] == pytest.approx(50 / TOKENS)
    assert "| pd | 8 | worker | 1.500 | 3.000 | 0.050 |" in process_table(rows)


def test_ratios_are_paired_by_rounds_and_need_enough_of_them() -> None:
    slow = np.linspace(1, 3, MIN_BLOCKS)
    one, half = cell(slow, USE), cell(slow * 2, USE)
    found = ratio_of(half, one, ALPHA)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.5, 0.5))
    assert ratio_text(ratio_fields(found)) == "0.500 (0.500–0.500)"
    few = ratio_of(cell(slow[:-1], USE), cell(slow[:-1], USE), ALPHA)
    assert few is None
    assert ratio_text(ratio_fields(few)) == "–"


def test_ways_to_wait_are_compared_with_block() -> None:
    seconds = np.linspace(1, 2, MIN_BLOCKS)
    variants = variants_of(["pdv", "pdv+wait=spin"], {})
    rows = wait_rows(
        variants,
        {
            ("pdv", 1): cell(seconds, USE, draft_to_verify=edge([100] * 5)),
            ("pdv+wait=spin", 1): cell(
                seconds / 2, USE, draft_to_verify=edge([50] * 5), front_to_verify=edge([900] * 50)
            ),
        },
    )
    assert [row["wait"] for row in rows] == ["block", "spin"]
    assert rows[0]["ratio"] is None
    assert rows[1]["ratio"] == pytest.approx(2)
    assert rows[0]["wire_p50_us"] == pytest.approx(100, rel=0.03)
    assert rows[1]["wire_p50_us"] == pytest.approx(50, rel=0.03)
    assert rows[1]["cpu_s_per_token"] == pytest.approx(2 / TOKENS)
    assert rows[1]["voluntary_switches_per_token"] == pytest.approx(3.1)
    assert "| pdv+wait=spin | 1 | 2.000 (2.000–2.000) | 2.00 | 3.10 | 0.07 | 49 |" in wait_table(
        rows
    )


@pytest.mark.parametrize("topology", ["pd", "pdv"])
@pytest.mark.parametrize("way", ["pool", "copy", "handle"])
def test_copied_bytes_are_tokens_times_bytes_per_token(
    tiny_pair: TinyPair, topology: str, way: str
) -> None:
    config = pools_config(topology, tiny_pair.verifier, tiny_pair.draft, kv_handoff=way)
    plan = make_plan(config)
    target, draft = (m.config.kv_bytes_per_token(plan.dtype) for m in plan.models)
    expected = {
        ("pd", "copy"): (target + draft, 0),
        ("pd", "handle"): (target + draft, 0),
        ("pdv", "copy"): (target + draft, draft),
        ("pdv", "handle"): (target, draft),
    }.get((topology, way), (0, 0))
    assert bytes_per_token(plan) == dict(zip(EDGES, expected, strict=True))


def test_the_codec_is_timed_with_messages_that_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "RUNS", 3)
    monkeypatch.setattr(codec, "COLD_RUNS", 1)
    rows = codec.codec_rows()
    assert [row["edge"] for row in rows] == list(codec.messages())
    for message in codec.messages().values():
        arrived, _ = stages.decode(bytes(stages.encode(message, 0)), 0)
        assert type(arrived) is type(message)
    assert all(row["decode_cold_us"] > 0 for row in rows)
    assert codec.codec_table(rows).count(f" {codec.ENTRIES} ") == len(rows)


def test_wrong_byte_counts_are_said(tiny_pair: TinyPair) -> None:
    variants = variants_of(["pd", "pd+kv-handoff=copy"], {})
    configurations, cells = {}, {}
    for variant in variants:
        way = variant.value("kv-handoff")
        config = pools_config("pd", tiny_pair.verifier, tiny_pair.draft, kv_handoff=way)
        each = bytes_per_token(make_plan(config))[EDGES[0]]
        configurations[variant.name] = json.loads(config.to_json())
        copied = edge([100], kv_bytes=PROMPT_TOKENS * each)
        cells[variant.name, 8] = cell([1.0] * MIN_BLOCKS, USE, prefill_to_verify=copied)
    rows = price_rows(variants, edge_rows(cells), cells, configurations)
    assert [row["kv_handoff"] for row in rows] == ["pool", "copy"]
    assert rows[1]["kv_bytes"] == rows[1]["expected_kv_bytes"] > 0
    assert wrong_counts(rows) == []
    assert f"| {rows[1]['kv_bytes']} |" in price_table(rows)
    rows[1]["kv_bytes"] -= 1
    (wrong,) = wrong_counts(rows)
    assert wrong.startswith("pd+kv-handoff=copy, C = 8, prefill>verify: ")
