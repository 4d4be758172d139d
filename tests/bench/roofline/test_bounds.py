"""Bounds against the numbers of known shapes, worked out beside the program."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest
import torch
from click.testing import CliRunner

from bench.cli import main
from bench.inflate.shapes import find_shape
from bench.roofline import (
    DEVICES,
    CellWork,
    ModelCost,
    best_length,
    cell_bound,
    machine,
    step_seconds,
)
from bench.roofline.bounds import acceptance_of, decode_bound, expected_tokens, prefill_seconds
from bench.roofline.rates import Rates

H200 = DEVICES["H200"]


def shape(name: str) -> ModelCost:
    return ModelCost.of(find_shape(name).parse(), bytes_per_number=2)


@pytest.mark.parametrize(
    ("name", "gigabytes", "kv_bytes"),
    [
        ("tinyllama-1.1b", 2.07, 22_528),
        ("llama-2-7b", 13.21, 524_288),
        ("codellama-34b", 66.96, 196_608),
    ],
)
def test_bytes_of_a_step(name: str, gigabytes: float, kv_bytes: int) -> None:
    assert shape(name).step_bytes / 1e9 == pytest.approx(gigabytes, abs=0.01)
    assert shape(name).kv_bytes == kv_bytes


@pytest.mark.parametrize(
    ("batch", "rate"), [(1, 319), (8, 2239), (32, 6311), (64, 9054), (128, 11569)]
)
def test_plain_decoding_of_a_7b_shape_at_context_512(batch: int, rate: float) -> None:
    seconds = step_seconds(H200, shape("llama-2-7b"), batch, 1, 512)
    assert batch / seconds == pytest.approx(rate, rel=0.002)


@pytest.mark.parametrize(
    ("batch", "acceptance", "length", "rate"),
    [(1, 0.42, 1, 392), (1, 0.7, 3, 552), (32, 0.7, 4, 12092), (128, 0.42, 1, 13878)],
)
def test_the_best_draft_length_at_context_512(
    batch: int, acceptance: float, length: int, rate: float
) -> None:
    verifier, draft = shape("llama-2-7b"), shape("tinyllama-1.1b")
    # A prompt of 512 tokens and hardly any output: all decoding is at that context.
    rates = {}
    for k in range(9):
        work = CellWork(batch, 512, 0, k, expected_tokens(acceptance, k))
        rates[k] = decode_bound(H200, verifier, draft, work)
    assert max(rates, key=lambda k: rates[k]) == length
    assert rates[length] == pytest.approx(rate, rel=0.002)


def test_a_launch_floor_is_paid_per_layer() -> None:
    floor = DEVICES["H200, 12 µs per layer"]
    assert 1 / step_seconds(floor, shape("llama-2-7b"), 1, 1, 512) == pytest.approx(284, abs=1)


def test_a_cell_is_its_prefill_and_its_cycles() -> None:
    rates = Rates("a CPU", 20e9, 200e9)
    verifier = ModelCost(30, 576, 9, 3, 64, 1536, 4096, 4)
    work = CellWork(batch=8, prompt=128, output=64)
    prefill = prefill_seconds(rates, verifier, 8, 128)
    # Compute-bound: 106 million weights of the layers, a multiply-add each, for 8 x 128 tokens,
    # but in the last layer for one of each prompt alone.
    assert prefill == pytest.approx(2 * 106.2e6 * 1024 * 29 / 30 / 200e9, rel=0.03)
    step = step_seconds(rates, verifier, 8, 1, 160)
    assert cell_bound(rates, verifier, None, work) == pytest.approx(512 / (prefill + 63 * step))


def test_a_prompt_without_logits_reads_no_head_and_computes_no_last_layer() -> None:
    slow, quick = Rates("slow to compute", 1e15, 1e9), Rates("slow to read", 1e9, 1e15)
    draft = ModelCost(2, 128, 2, 1, 64, 384, 4096, 4)
    whole = step_seconds(slow, draft, 1, 128, 64, head_tokens=128)
    layers = whole - 2 * draft.head_weights * 128 / 1e9
    assert prefill_seconds(slow, draft, 1, 128, 0) == pytest.approx(layers / 2)
    read = prefill_seconds(quick, draft, 1, 128) - prefill_seconds(quick, draft, 1, 128, 0)
    assert read == pytest.approx(4 * 128 * 4096 / 1e9)


def test_the_best_length_of_a_cell_is_0_where_drafts_are_never_accepted() -> None:
    verifier, draft = shape("llama-2-7b"), shape("tinyllama-1.1b")
    work = best_length(H200, verifier, draft, CellWork(1, 512, 64), 0.0)
    assert (work.length, work.per_cycle) == (0, 1.0)


@pytest.mark.parametrize("length", [1, 4, 8])
@pytest.mark.parametrize("acceptance", [0.1, 0.42, 0.9])
def test_acceptance_from_tokens_per_cycle(acceptance: float, length: int) -> None:
    tokens = expected_tokens(acceptance, length)
    assert acceptance_of(tokens, length) == pytest.approx(acceptance)


def test_nothing_is_accepted_without_drafts() -> None:
    assert acceptance_of(1.0, 0) == 0.0
    assert expected_tokens(1.0, 4) == 5


def test_the_command_prints_a_line_for_each_concurrency() -> None:
    done = CliRunner().invoke(
        main, ["roofline", "--device", "H200", "--concurrency", "1,32", "--output-tokens", "2"]
    )
    assert done.exit_code == 0, done.output
    *_, one, many = done.output.splitlines()
    # At a context of 513: 319 tokens/s plain, 552 with 3 draft tokens, as for 512.
    assert one.split(" | ")[4:8] == ["3", "3.14", "552", "319"]
    assert many.startswith("| 32 | ")


def test_an_unknown_shape_is_refused() -> None:
    done = CliRunner().invoke(main, ["roofline", "--device", "H200", "--model", "llama-2-7"])
    assert done.exit_code == 2
    assert "did you mean llama-2-7b?" in done.output


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """Little to measure; the number of threads."""
    monkeypatch.setattr(machine, "BUFFER_BYTES", 1 << 20)
    monkeypatch.setattr(machine, "MATRIX", 64)
    return torch.get_num_threads()


def test_the_rates_of_this_machine(small: int) -> None:
    found = machine.Machine(small).measure(0.02)
    assert min(found.read, found.copy) > 1e6
    assert found.flops > 1e8
    assert found.rates.bandwidth == max(found.read, found.copy)


def test_the_quicker_products_count_and_are_measured_again(small: int) -> None:
    here = machine.Machine(small)
    asked: list[str] = []

    def products(name: str, flops: float) -> Callable[[float], float]:
        def measured(seconds: float) -> float:
            del seconds
            asked.append(name)
            return flops

        return measured

    here._products = [products("slow", 1e20), products("quick", 2e20)]
    assert [here.measure(0.0).flops for _ in range(2)] == [2e20, 2e20]
    assert asked == ["slow", "quick", "quick"]


def test_a_probe_measures_as_often_as_it_is_asked_to() -> None:
    with machine.MachineProbe(1) as probe:
        answers = [probe.first, probe.now(), probe.now()]
        assert probe._process is not None
        pid = probe._process.pid
    for found in answers:
        assert found is not None
        assert found.threads == 1
        assert min(found.read, found.copy, found.flops) > 1e6
    assert not psutil.pid_exists(pid)
    assert probe.now() is None


def test_a_probe_that_dies_says_nothing() -> None:
    with machine.MachineProbe(1) as probe:
        assert probe._process is not None
        probe._process.kill()
        probe._process.wait()
        assert [probe.now(), probe.now()] == [None, None]
    assert machine.measure(0) is None  # torch wants one thread at least
