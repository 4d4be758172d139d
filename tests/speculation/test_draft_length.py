"""Draft lengths chosen on devices that are tables: against the best fixed length, and over time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from speculation.emulated_device import (
    DEVICES,
    Device,
    Requests,
    Run,
    best_fixed,
    serve,
    serve_together,
)

from pdv_mp.config import SpeculationOptions
from pdv_mp.speculation.draft_length import goodput
from pdv_mp.speculation.draft_length.controller import (
    CycleTimes,
    DecodeBatch,
    DraftLengthController,
)
from pdv_mp.speculation.draft_length.draft_costs import DraftCosts
from pdv_mp.speculation.draft_length.feedback import Feedback
from pdv_mp.speculation.draft_length.fixed import FixedLength
from pdv_mp.speculation.draft_length.goodput import FEW_FOLLOW, Goodput
from pdv_mp.speculation.draft_length.make import make_controller
from pdv_mp.speculation.draft_length.step_costs import StepCosts

LONGEST = 8
TOKENS = 128
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)
ACCEPTANCES = (0.75, 0.42, 0.3)
LEARNING = 100
"""Cycles in which a controller that knows nothing of its device may be worse."""


def endless(sequences: int, seed: int = 0) -> Requests:
    return Requests(sequences, TOKENS, np.random.default_rng(seed), endless=True)


def constant(alpha: float) -> Callable[[int], float]:
    return lambda cycle: alpha


def best(device: Device, sequences: int, alpha: float) -> float:
    return best_fixed(device, sequences, alpha, LONGEST, sequences * (128 + TOKENS // 2))


def regret(run: Run, device: Device, sequences: int, alpha: float, first: int) -> float:
    return 1 - run.goodput(first) / best(device, sequences, alpha)


def some_and_all(concurrencies: tuple[int, ...], devices: tuple[str, ...]) -> list[object]:
    """All combinations; those that are not of ``concurrencies`` and ``devices`` are slow."""
    return [
        pytest.param(
            name,
            sequences,
            marks=[] if sequences in concurrencies and name in devices else [pytest.mark.slow],
        )
        for name in DEVICES
        for sequences in CONCURRENCIES
    ]


@pytest.mark.parametrize(
    ("name", "sequences"), some_and_all((1, 4, 32), ("memory-bound", "compute-bound", "tiles"))
)
@pytest.mark.parametrize("alpha", ACCEPTANCES)
def test_as_good_as_the_best_fixed_length(name: str, sequences: int, alpha: float) -> None:
    device, controller = DEVICES[name], Goodput(LONGEST, sequences)
    run = serve(controller, device, endless(sequences), constant(alpha), 500)
    assert regret(run, device, sequences, alpha, LEARNING) < 0.02
    assert regret(run, device, sequences, alpha, 0) < 0.05


@pytest.mark.parametrize("name", ["memory-bound", "compute-bound", "expensive draft"])
@pytest.mark.parametrize("sequences", [1, 6, 23])
def test_after_a_rehearsal_nothing_has_to_be_tried(name: str, sequences: int) -> None:
    device, controller = DEVICES[name], Goodput(LONGEST, sequences)
    controller.rehearsed(device.rehearsal((1, 2, 4, 8, 16, 32), (0, 1, 2, 4, 8)))
    run = serve(controller, device, endless(sequences), constant(0.6), 60)
    assert controller.decisions.trials == 0
    assert regret(run, device, sequences, 0.6, 0) < 0.05  # acceptance is still to be learnt


@pytest.mark.parametrize("sequences", [1, 8])
@pytest.mark.parametrize("disturbed", ["many rows", "few rows"])
def test_what_disturbed_a_rehearsal_is_found_out(sequences: int, disturbed: str) -> None:
    """Another program ran while the cycles of many drafts were measured, or those of few."""
    device, controller = DEVICES["memory-bound"], Goodput(LONGEST, sequences)
    alpha = 0.75 if disturbed == "many rows" else 0.3
    found = [
        times._replace(verify_ns=2 * times.verify_ns)
        if (times.rows > 2 * times.sequences) == (disturbed == "many rows")
        else times
        for times in device.rehearsal((1, 2, 4, 8, 16, 32), (0, 1, 2, 4, 8))
    ]
    controller.rehearsed(found)
    run = serve(controller, device, endless(sequences), constant(alpha), 600)
    assert regret(run, device, sequences, alpha, 300) < 0.02
    assert 1 <= controller.decisions.explorations < 30


@pytest.mark.parametrize(("sequences", "alpha", "every"), [(8, 0.35, 300), (4, 0.42, 900)])
def test_a_machine_that_changes_its_speed_is_no_reason_to_change_lengths(
    sequences: int, alpha: float, every: int
) -> None:
    """Where lengths are nearly worth the same, the one in use must not look dear in slow hours."""
    device, regrets = DEVICES["two shared cores"], []
    for seed in range(3):
        cycles = count()

        def noise(rng: np.random.Generator, cycles: Iterator[int] = cycles) -> float:
            pace = 1.4 if next(cycles) // every % 2 else 1.0
            return pace * float(np.exp(rng.normal(0, 0.04)))

        controller = Goodput(LONGEST, sequences)
        controller.rehearsed(device.rehearsal((1, 2, 4, 8, 16, 32), (0, 1, 2, 4, 8)))
        run = serve(controller, device, endless(sequences, seed), constant(alpha), 2000, noise)
        regrets.append(regret(run, device, sequences, alpha, 0))
    assert np.mean(regrets) < 0.012


@pytest.mark.parametrize("name", ["memory-bound", "compute-bound", "tiles"])
def test_requests_that_end_together_are_not_slower_for_drafts(name: str) -> None:
    """At a low acceptance drafts pay by the law, but the requests would end one after another."""
    device, sequences, tokens = DEVICES[name], 8, 64
    ratios = []
    for seed in range(4):
        controller, rng = Goodput(LONGEST, sequences), np.random.default_rng(seed)
        controller.rehearsed(device.rehearsal((1, 2, 4, 8, 16, 32), (0, 1, 2, 4, 8)))
        for turn in range(12):
            acceptance = np.clip(rng.normal(0.2, 0.1, sequences), 0.02, 0.95)
            plain = FixedLength(0, sequences)
            took, plainly = (
                serve_together(each, device, acceptance, tokens, rng)
                for each in (controller, plain)
            )
            ratios += [plainly / took] * (turn >= 2)
    assert np.mean(ratios) > 0.97


@pytest.mark.parametrize("name", ["memory-bound", "two shared cores"])
def test_those_that_would_end_last_are_drafted_for_first(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that begin together and of which some have a hard text: nobody joins them."""

    def took(all_alike: bool) -> float:
        monkeypatch.setattr(goodput, "FEW_FOLLOW", -1.0 if all_alike else FEW_FOLLOW)
        device, sequences, total = DEVICES[name], 8, 0.0
        for seed in range(4):
            controller, rng = Goodput(LONGEST, sequences), np.random.default_rng(seed)
            controller.rehearsed(device.rehearsal((1, 2, 4, 8, 16, 32), (0, 1, 2, 4, 8)))
            for turn in range(12):
                acceptance = np.clip(rng.beta(2.4, 0.8, sequences), 0.03, 0.97)
                each = serve_together(controller, device, acceptance, 200, rng)
                total += each * (turn >= 2)
        return total

    assert took(all_alike=False) < 0.985 * took(all_alike=True)


def test_a_shorter_step_that_is_served_replaces_what_was_rehearsed() -> None:
    costs = StepCosts()
    costs.rehearsed({(1, 1): 1000, (1, 4): 3000}, 100)
    for _ in range(30):
        costs.add(1, 1, 100, 1000)
    rows = np.array([1.0, 2.0, 4.0])
    assert costs.estimate(1, rows, 100)[0][2] == pytest.approx(3000, rel=0.1)
    least, sure = costs.least(1, rows, 100)
    assert least == pytest.approx([950, 950, 950], rel=0.02)
    assert sure.tolist() == [True, False, False]
    costs.add(1, 4, 100, 1200)
    assert costs.estimate(1, rows, 100)[0][2] == pytest.approx(1200, rel=0.1)
    for _ in range(4):
        costs.add(1, 4, 100, 1200)
    assert costs.least(1, rows, 100)[1].tolist() == [True, False, True]
    between = costs.estimate(1, rows, 100)[0][1]
    assert between == pytest.approx(1200, rel=0.1), "fewer rows cost no more"
    assert costs.estimate(1, np.array([1.0]), 100)[0][0] == pytest.approx(1000, rel=0.1)


def test_costs_between_rehearsed_sizes_are_interpolated() -> None:
    costs, drafts = StepCosts(), DraftCosts()
    costs.rehearsed({(4, 1): 1000, (4, 4): 4000, (16, 1): 2000, (16, 4): 8000}, 100)
    drafts.rehearsed({(4, 1): 1100, (4, 3): 3100, (16, 1): 2200, (16, 3): 6200})
    times, known = costs.estimate(8, np.array([8.0, 16.0, 32.0]), 800)
    assert known.all()
    expected = 2**0.5 * np.array([1000, 2000, 4000])
    assert times == pytest.approx(expected, rel=0.05)  # less what a cell may err by
    ns, is_known = drafts.estimate(8, np.array([1, 2, 3]))
    assert is_known
    assert ns == pytest.approx(2**0.5 * np.array([1100, 2100, 3100]), rel=0.01)
    assert not costs.estimate(32, np.array([32.0]), 3200)[1].any()
    assert not drafts.estimate(32, np.array([1]))[1]


@pytest.mark.parametrize("cycles", [20_000, 2_000_000])
def test_what_a_step_costs_is_remembered_over_long_times(cycles: int) -> None:
    """Whatever was served meanwhile: neither is it taken to be free, nor is it lost."""
    costs = StepCosts()
    costs.rehearsed({(1, 1): 1000, (1, 4): 2000, (32, 1): 8000, (32, 4): 32000}, 100)
    for _ in range(100):
        costs.add(32, 32, 3200, 8000)
    costs._steps += cycles  # as many more of these
    times, known = costs.estimate(1, np.array([1.0, 2.0, 4.0]), 100)
    assert known.all()
    assert times == pytest.approx([1000, 2**0.5 * 1000, 2000], rel=0.1)


@pytest.mark.parametrize(("name", "sequences"), some_and_all((1, 32), ("compute-bound", "tiles")))
def test_noise_costs_little_and_causes_no_flapping(name: str, sequences: int) -> None:
    """Steps whose measured times are 10 % off, and every fiftieth takes five times as long."""

    def noise(rng: np.random.Generator) -> float:
        return float(rng.lognormal(0, 0.1)) * (5 if rng.random() < 0.02 else 1)

    device, controller = DEVICES[name], Goodput(LONGEST, sequences)
    run = serve(controller, device, endless(sequences), constant(0.42), 600, noise)
    assert regret(run, device, sequences, 0.42, LEARNING) < 0.06
    assert controller.decisions.switches - controller.decisions.trials < 600 / 20


@pytest.mark.parametrize("sequences", [1, 8, 32])
def test_a_change_of_acceptance_is_followed_in_twenty_cycles(sequences: int) -> None:
    device, controller = DEVICES["memory-bound"], Goodput(LONGEST, sequences)
    run = serve(
        controller, device, endless(sequences), lambda cycle: 0.75 if cycle < 300 else 0.3, 400
    )
    before, after = run.goodput(LEARNING, 300), run.goodput(320, 400)
    assert np.median(run.longest[LEARNING:300]) >= 3
    assert np.median(run.longest[320:]) <= 2
    assert before > 0.97 * best(device, sequences, 0.75)
    assert after > 0.95 * best(device, sequences, 0.3)


def test_a_rise_of_acceptance_ends_a_time_without_drafts() -> None:
    """Explorations find out, with a few sequences."""
    device, controller = DEVICES["expensive draft"], Goodput(LONGEST, 8)
    run = serve(controller, device, endless(8), lambda cycle: 0.3 if cycle < 300 else 0.9, 2200)
    assert run.longest[200:300].count(0) > 90
    assert np.median(run.longest[-100:]) >= 1


@pytest.mark.parametrize(
    "name", ["compute-bound", "expensive draft", "draft as dear as the verifier"]
)
def test_having_speculation_costs_little_while_nothing_is_drafted(name: str) -> None:
    device, controller = DEVICES[name], Goodput(LONGEST, 32)
    cycles = 1000
    run = serve(controller, device, endless(32), constant(0.3), cycles)
    assert run.longest[LEARNING:].count(0) > 0.97 * (cycles - LEARNING)
    assert controller.decisions.explorations >= 1, "it stays informed"
    plain = serve(FixedLength(0, 32), device, endless(32), constant(0.3), 200)
    assert run.goodput(LEARNING) > 0.98 * plain.goodput()


def test_an_exploration_drafts_one_token_for_those_that_lag_least() -> None:
    device, controller = DEVICES["compute-bound"], Goodput(LONGEST, 32)
    requests = Requests(32, TOKENS, np.random.default_rng(3))
    run = serve(controller, device, requests, constant(0.3), 300)
    explored = [lengths for lengths in run.lengths[LEARNING:] if lengths.any()]
    assert explored
    for lengths in explored:
        assert lengths.max() == 1
        assert lengths.sum() <= 8


def looked_up(device: Device, acceptance: list[float], cycles: int) -> tuple[np.ndarray, float]:
    """Drafts that are looked up, each of one of two kinds by chance. Of the second half of all
    cycles: tokens drafted by kind, and the time per token over that without drafts."""
    rng, sequences = np.random.default_rng(0), 16
    controller = Goodput(LONGEST, sequences, lookup_kinds=2)
    drafted, took, tokens = np.zeros(2), 0.0, 0
    for cycle in range(cycles):
        slots = np.arange(sequences)
        kinds = rng.integers(0, 2, sequences)
        lengths = np.zeros(sequences, np.int64)
        if not controller.passes():
            limits = np.where(rng.random(sequences) < 0.9, 100, 0)
            batch = DecodeBatch(slots, limits, slots + 100, limits + 1, 0 * slots, kinds=kinds)
            lengths = controller.choose(batch)
            assert (lengths <= limits).all()
        hits = rng.random((sequences, LONGEST)) < np.array(acceptance)[kinds][:, None]
        accepted = np.minimum(np.logical_and.accumulate(hits, axis=1).sum(axis=1), lengths)
        controller.judged(slots, lengths, accepted)
        rows = sequences + int(lengths.sum())
        verify = device.verify(rows, 1600)
        controller.timed(CycleTimes(sequences, rows, 1600, int(1000 * verify), overhead_ns=50_000))
        if cycle >= cycles // 2:
            drafted += np.bincount(kinds, lengths, 2)
            took += verify + 50
            tokens += sequences + int(accepted.sum())
    return drafted, took / tokens / ((device.verify(sequences, 1600) + 50) / sequences)


def test_kinds_of_drafts_that_are_never_kept_are_left_out() -> None:
    device = Device(lambda rows, context: 1000 + 100 * rows, lambda sequences: 0)
    (bad, good), took = looked_up(device, [0.02, 0.97], 300)
    assert bad < 0.05 * good
    assert took < 0.8


@pytest.mark.parametrize("name", ["compute-bound", "memory-bound", "tiles"])
def test_looking_up_in_vain_costs_nothing(name: str) -> None:
    drafted, took = looked_up(DEVICES[name], [0.01, 0.01], 600)
    assert took < 1.02
    assert drafted.sum() < 300


def rehearsed_with(read_ns: float) -> Goodput:
    """A controller for batches of 8; a row costs some 0.3 % of a cycle, a forward of the draft 5 %,
    and ``read_ns`` each token of a prompt that the draft reads."""
    controller = Goodput(LONGEST, 8)
    times = [
        CycleTimes(8, 8 * width, 800, 900_000 + 2_500 * 8 * width, *drafts)
        for width in range(1, LONGEST + 2)
        for drafts in ([(8, width - 1, 0, 50_000 * (width - 1))] if width > 1 else [()])
    ]
    controller.rehearsed(times, read_ns)
    return controller


@pytest.mark.parametrize(
    ("read_ns", "reading", "drafts"),
    [(1_000, 0.0, True), (1_000, 2.0, True), (60_000, 0.0, True), (60_000, 4.0, False)],
)
def test_drafting_pays_for_the_prompts_that_are_read_for_it(
    read_ns: int, reading: float, drafts: bool
) -> None:
    controller = rehearsed_with(read_ns)
    slots, limits = np.arange(8), np.full(8, LONGEST)
    batch = DecodeBatch(slots, limits, slots + 100, limits + 50, 0 * slots, reading=reading)
    lengths = [controller.choose(batch) for _ in range(2 * goodput.DWELL)]
    assert bool(lengths[-1].any()) == drafts


def test_requests_that_are_easier_are_known_as_such() -> None:
    controller = Goodput(LONGEST, 2)
    lengths = np.array([4, 4])
    for _ in range(60):
        controller.judged(np.array([0, 1]), lengths, np.array([4, 0]))
    survival = controller._estimate.survival(np.array([0, 1]), 4)
    assert survival[0, 3] > 0.5 > 0.2 > survival[1, 0]
    controller.forget(1)
    assert controller._estimate.survival(np.array([0, 1]), 1)[1, 0] > 0.4


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sequences=st.integers(1, 12),
    longest=st.integers(1, 12),
    overlap=st.integers(1, 2),
    kind=st.sampled_from(["goodput", "feedback", "fixed"]),
)
def test_lengths_are_always_within_their_limits(
    seed: int, sequences: int, longest: int, overlap: int, kind: str
) -> None:
    """Whatever happens: those that do not speculate, and whose budget is used up, draft nothing."""
    rng = np.random.default_rng(seed)
    options = SpeculationOptions(max_speculative_tokens=longest, draft_controller=kind)
    controller = make_controller(options, sequences, overlap)
    device = Device(
        verify=lambda rows, context: float(rng.exponential(1000)),
        draft=lambda drafting: float(rng.exponential(300)),
        fed=float(rng.exponential(10)),
    )
    requests = Requests(sequences, int(rng.integers(2, 20)), rng)
    silent = rng.random(sequences) < 0.3

    class Quiet:
        """Some of the sequences do not speculate, and now and then nobody does."""

        max_length = controller.max_length
        judged, timed, forget = controller.judged, controller.timed, controller.forget

        def passes(self) -> bool:
            return controller.passes()

        def choose(self, batch: DecodeBatch) -> np.ndarray:
            limits = np.where(silent | (rng.random() < 0.1), 0, batch.limits)
            asked = batch._replace(limits=limits)
            lengths = controller.choose(asked)
            assert (lengths <= limits).all()
            return lengths

    run = serve(Quiet(), device, requests, lambda cycle: float(rng.random()), 60)  # type: ignore[arg-type]
    assert sum(controller.decisions.lengths.values()) <= len(run.lengths)
    assert set(controller.decisions.lengths) <= set(range(controller.max_length + 1))
    assert 0 <= controller.length <= controller.max_length
    assert 0 < controller.acceptance < 1 or kind == "feedback"


def test_the_sources_rule_goes_by_its_thresholds() -> None:
    fast, slow = DEVICES["tiles"], Device(lambda rows, context: 60_000, lambda sequences: 100)

    def length(device: Device, alpha: float, waiting: int = 0) -> int:
        controller = Feedback(LONGEST)
        requests = endless(4)
        batch = requests.batch
        for _ in range(40):
            serve(controller, device, requests, constant(alpha), 3)
            controller.choose(batch._replace(waiting=waiting))
        return controller.length

    assert length(fast, 1.0) == 8
    assert length(fast, 0.1) == 2
    assert length(slow, 1.0) == 2
    assert length(fast, 1.0, waiting=20) < 8


@pytest.mark.parametrize(
    ("options", "name", "longest"),
    [
        ({}, "goodput", 8),
        ({"max_speculative_tokens": 3}, "goodput", 3),
        ({"num_speculative_tokens": 5}, "fixed", 5),
        ({"num_speculative_tokens": 0}, "fixed", 0),
        ({"draft_controller": "feedback"}, "feedback", 8),
        ({"draft_controller": "feedback", "max_speculative_tokens": 1}, "feedback", 1),
        ({"draft_controller": "fixed"}, "fixed", 4),
        ({"draft_controller": "fixed", "max_speculative_tokens": 2}, "fixed", 2),
        ({"draft_controller": "feedback", "num_speculative_tokens": 6}, "fixed", 6),
    ],
)
def test_controllers_by_their_options(options: dict[str, object], name: str, longest: int) -> None:
    controller: DraftLengthController = make_controller(SpeculationOptions(**options), 4)  # type: ignore[arg-type]
    assert (controller.name, controller.max_length) == (name, longest)
