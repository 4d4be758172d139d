"""The law of a cycle, and what is computed from the roofline."""

from __future__ import annotations

import dataclasses

import pytest
from emulation.flat_table import flat_table

from bench.emulation.calibration import acceptance_of
from bench.emulation.law import (
    Arrangement,
    HostCosts,
    Work,
    best_length,
    expected_tokens,
    fit_line,
    predict,
)
from bench.emulation.roofline import PAIRS, roofline_table
from pdv_mp.emulation.cost_table import CostTable, read_cost_table
from pdv_mp.emulation.device_name import table_path

TABLE = CostTable.from_dict(flat_table(190.0))  # a step takes 200 µs
DRAFT = 4 * 190 + 10  # the steps of a draft are launched at once
HOST = HostCosts(s0=50, s1=2, h0=30, h1=1)
WORK = Work(prompt=0, answer=100)


def test_the_cycle_of_one_group() -> None:
    found = predict(TABLE, HOST, Arrangement("pdv"), 8, 4, WORK)
    assert found.device_us == pytest.approx(DRAFT + 200)
    assert found.messages_us == pytest.approx(2 * (30 + 8))
    assert found.cycle_us == pytest.approx(DRAFT + 200 + 50 + 16 + 2 * 38)
    assert found.rate == pytest.approx(1e6 * 8 * expected_tokens(0.6, 4) / found.cycle_us)


def test_groups_read_the_weights_once_each() -> None:
    one = predict(TABLE, HOST, Arrangement("pdv"), 8, 4, WORK)
    two = predict(TABLE, HOST, Arrangement("pdv", groups=2), 8, 4, WORK)
    assert two.device_us == 2 * one.device_us


def test_a_delay_counts_once_for_each_message() -> None:
    plain = predict(TABLE, HOST, Arrangement("pdv"), 1, 2, WORK)
    delayed = predict(TABLE, HOST, Arrangement("pdv", extra_us=500), 1, 2, WORK)
    assert delayed.cycle_us - plain.cycle_us == pytest.approx(1000)
    assert predict(TABLE, HOST, Arrangement("pdv", extra_us=500), 1, 0, WORK).messages_us == 0


def test_prompts_take_their_part() -> None:
    long = predict(TABLE, HOST, Arrangement("unified"), 4, 2, Work(prompt=64, answer=100))
    tokens = 4 * expected_tokens(0.6, 2)
    assert long.rate == pytest.approx(1e6 * tokens / (long.cycle_us + tokens / 100 * 400))


def test_prompts_are_computed_beside_cycles_where_processes_overlap() -> None:
    """A client alone finds nothing to overlap with; of many, the slower of the two processes says
    how quickly they are served."""
    table = dataclasses.replace(TABLE, overlap=True)

    def rates(clients: int, prefill: float, answer: int = 2) -> tuple[float, float]:
        work = Work(prompt=64, answer=answer)
        steps = {**TABLE.steps, "prefill": TABLE.steps["prefill"].scaled(prefill)}
        slower = dataclasses.replace(table, steps=steps)
        nobody = HostCosts(0, 0, 0, 0)
        unified = predict(slower, nobody, Arrangement("unified"), clients, 2, work)
        apart = predict(slower, nobody, Arrangement("pd"), clients, 2, work)
        return unified.rate, apart.rate

    apart = rates(1, 1.0)[1]
    prompt, cycles = 400, 2 / expected_tokens(0.6, 2) * 590
    assert apart == pytest.approx(1e6 * 2 / (prompt + cycles))
    assert rates(64, 20.0)[1] == pytest.approx(1e6 * 2 / (20 * 190 + 10 + 200), rel=0.01)
    unified, apart = rates(4, 20.0, answer=64)
    assert unified < apart < 1e6 * 4 * expected_tokens(0.6, 2) / 590


def test_two_devices_overlap_drafts_and_verification() -> None:
    where = Arrangement("pdv", groups=2, own_draft_device=True)
    found = predict(TABLE, HostCosts(0, 0, 0, 0), where, 8, 4, WORK)
    assert found.cycle_us == pytest.approx(2 * DRAFT)


def test_the_law_of_two_devices() -> None:
    """A draft device pays at low concurrency, replicas at high; speculative/roofline tables."""
    table = read_cost_table(table_path("h200-llama-2-7b"))
    work, host = Work(16, 512), HostCosts(0, 0, 0, 0)
    ratios = []
    for concurrency in (2, 32, 256):
        split = best_length(
            table, host, Arrangement("pdv", 2, own_draft_device=True), concurrency, work
        )
        replicas = best_length(table, host, Arrangement("unified", replicas=2), concurrency, work)
        ratios.append(split[1].rate / replicas[1].rate)
    assert ratios[0] > ratios[2]
    assert ratios[2] < 1


def test_a_draft_that_costs_as_much_as_the_verifier_never_pays() -> None:
    table = dataclasses.replace(roofline_table("h200", "tinyllama", 0.7), launch_us=0.0)
    host = HostCosts(0, 0, 0, 0)
    for concurrency in (1, 16, 128):
        k, _ = best_length(table, host, Arrangement("unified"), concurrency, Work(1, 512))
        assert k == 0


@pytest.mark.parametrize(
    ("pair", "gigabytes", "kv"),
    [
        ("tinyllama", 2.07, 22_528),
        ("llama-2-7b", 13.21, 524_288),
        ("codellama-34b", 66.96, 196_608),
    ],
)
def test_the_roofline_has_the_models_sizes(pair: str, gigabytes: float, kv: int) -> None:
    model = PAIRS[pair][0]
    assert 2 * model.streamed / 1e9 == pytest.approx(gigabytes, abs=0.01)
    assert model.kv_bytes == kv


@pytest.mark.parametrize("pair", PAIRS)
def test_the_shipped_tables_are_those_of_the_roofline(pair: str) -> None:
    assert read_cost_table(table_path(f"h200-{pair}")) == roofline_table("h200", pair, 0.7)


def test_acceptance_from_what_a_cycle_keeps() -> None:
    kept = expected_tokens(0.7, 4) - 1
    assert acceptance_of(kept, 4) == pytest.approx(0.7)


def test_lines_have_no_negative_part() -> None:
    assert fit_line([1, 10], [11, 20], [11, 20]) == pytest.approx((10, 1))
    assert fit_line([1, 10], [10, 1], [10, 1])[1] == 0
    assert fit_line([4], [9], [9]) == (9, 0)
    assert fit_line([4], [-9], [9]) == (0, 0)
    # A difference that came out as nothing weighs as much as what it is the difference of.
    assert fit_line([1, 2, 3], [10, 0, 10], [100, 100, 100])[0] > 5
