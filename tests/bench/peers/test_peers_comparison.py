"""Interleaved comparisons of fake engines, and what becomes of those that fail."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import psutil
import pytest

from bench.peers.comparison import FRESH_SECONDS, Comparison, MachineNow
from bench.peers.engine import Engine
from bench.peers.errors import PeerError, PeersError
from bench.peers.pairs import Pair
from bench.peers.plan import Choice, Limits, Plan, PromptSource
from bench.peers.programs.peer import Setting
from bench.peers.records import (
    CELLS,
    PairRecord,
    PeersFolder,
    RatesRecord,
    RunRecord,
    Shape,
    Workload,
)
from bench.peers.summary import summarise
from bench.peers.tables import page
from pdv_mp import assets

FAKE = Path(__file__).with_name("fake_peer.py")
SECONDS = 60.0
SETTING = Setting("", "", "plain", 1, 2, 64, 4, "")
LOADS = (Workload(16, 6), Workload(8, 4))
SMALL = Shape(2, 128, 2, 1, 64, 384, 4096, 4)


def fake_engine(behaviour: str, folder: Path) -> Engine:
    command = [sys.executable, str(FAKE), behaviour, str(folder / f"{behaviour}.jsonl")]
    return Engine(command, {}, folder / f"{behaviour}.log")


def loaded(behaviour: str, folder: Path) -> Engine:
    engine = fake_engine(behaviour, folder)
    try:
        engine.load(SETTING, SECONDS)
    except PeerError:
        engine.close()
        raise
    return engine


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair("fake", assets.verifier_path(), assets.draft_path(), tmp_path / "converted")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[PeersFolder]:
    yield PeersFolder(tmp_path / "results")
    assert not [child for child in psutil.Process().children() if str(FAKE) in child.cmdline()]


def run_record(plan: Plan) -> RunRecord:
    return RunRecord(
        schema_version=1,
        started="2026-01-02T03:04:05+00:00",
        command=["pdv-bench", "peers"],
        environment={"machine": {"cpu": "a CPU"}},
        seed=plan.seed,
        threads=plan.threads,
        draft_tokens=plan.draft_tokens,
        engines=[choice.name for choice in plan.engines],
        pairs=[PairRecord("fake", "1", "2", SMALL, SMALL)],
        workloads=list(plan.workloads),
        concurrencies=list(plan.concurrencies),
        rounds=list(plan.rounds),
        rates=RatesRecord(1, 2e10, 1e10, 1e11),
    )


def compare(
    behaviours: Mapping[str, str],
    pair: Pair,
    folder: PeersFolder,
    rounds: tuple[int, ...] = (3, 2),
    deadline: float | None = None,
    rates: Callable[[], RatesRecord | None] = lambda: None,
) -> bool:
    """``behaviours``: of the engines by ``peer:mode``."""
    plan = Plan(
        engines=tuple(Choice(*name.split(":")) for name in behaviours),
        workloads=LOADS,
        concurrencies=(1, 2),
        rounds=rounds,
        seed=0,
        threads=1,
        draft_tokens=4,
        limits=Limits(answer=SECONDS, judged=1),
    )
    if folder.exists:
        folder.take_up(run_record(plan))
    else:
        folder.begin(run_record(plan))
    with Comparison(
        plan,
        pair,
        folder,
        lambda choice: loaded(behaviours[choice.name], folder.path),
        lambda: loaded("judge", folder.path),
        lambda text: None,
        rates,
    ) as comparison:
        return comparison.run(deadline)


def asked(folder: PeersFolder, behaviour: str) -> list[list[list[int]]]:
    """The prompts of every request for an engine's tokens, but for warm-up and prefill."""
    lines = (folder.path / f"{behaviour}.jsonl").read_text().splitlines()
    wanted = {load.output for load in LOADS}
    found = [json.loads(line) for line in lines[2:]]
    return [request["prompts"] for request in found if request["tokens"] in wanted]


def test_the_machine_is_measured_around_every_turn(pair: Pair, folder: PeersFolder) -> None:
    measured: list[RatesRecord] = []

    def rates() -> RatesRecord:
        done = len(folder.cells())
        measured.append(RatesRecord(1, 2e10 + done, 1e10, 1e11))
        return measured[-1]

    assert compare({"pdv_mp:plain": "well", "other:plain": "quick"}, pair, folder, rates=rates)
    cells = folder.cells()
    assert len(measured) >= len(cells) + 1
    for done, cell in enumerate(cells):
        assert cell.rates is not None
        # What was measured after it, when it was not yet recorded, and what before.
        assert done - 1 <= cell.rates.read - 2e10 <= done


def test_what_was_measured_after_a_turn_holds_before_the_next_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("bench.peers.comparison.time.monotonic", lambda: now)
    found = iter([RatesRecord(1, 1.0, 1.0, 1.0), None, RatesRecord(1, 3.0, 3.0, 3.0)])
    machine = MachineNow(lambda: next(found))
    assert machine.before() == machine.before() == RatesRecord(1, 1.0, 1.0, 1.0)
    now += FRESH_SECONDS
    assert machine.before() is None
    assert machine.after() == RatesRecord(1, 3.0, 3.0, 3.0)
    assert machine.before() == RatesRecord(1, 3.0, 3.0, 3.0)


def test_every_engine_gets_the_same_fresh_prompts_in_rotated_order(
    pair: Pair, folder: PeersFolder
) -> None:
    engines = {"pdv_mp:auto": "quick", "pdv_mp:plain": "well", "other:plain": "wrong"}
    assert compare(engines, pair, folder)
    cells = folder.cells()
    assert len(cells) == 3 * len(LOADS) * (3 + 2)
    assert {cell.tokens for cell in cells if cell.workload == "16+6"} == {6, 12}
    for workload, concurrency in {(cell.workload, cell.concurrency) for cell in cells}:
        mine = [
            cell for cell in cells if (cell.workload, cell.concurrency) == (workload, concurrency)
        ]
        first = [cell.engine for cell in mine if cell.order == 0]
        assert len(set(first)) == len(first) == (3 if concurrency == 1 else 2)
    assert asked(folder, "quick") == asked(folder, "well") == asked(folder, "wrong")
    texts = [tuple(prompt) for prompts in asked(folder, "well") for prompt in prompts]
    assert len(set(texts)) == len(texts)
    assert {cell.prefill_seconds is None for cell in cells if cell.round} == {True}
    assert {cell.prefill_seconds for cell in cells if not cell.round} == {0.125, 0.25}


def test_a_wrong_token_is_found(pair: Pair, folder: PeersFolder) -> None:
    assert compare({"pdv_mp:auto": "well", "other:plain": "wrong"}, pair, folder)
    for cell in folder.cells():
        assert cell.judged == 1
        assert cell.equal == (cell.engine == "pdv_mp:auto")


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("broken", "no module named engine"),
        ("dies", "it died with status 3: out of memory"),
        ("short", "asked for 6 tokens of each of 1 requests, it made 5"),
    ],
)
def test_an_engine_that_fails_is_listed_and_the_others_go_on(
    pair: Pair, folder: PeersFolder, behaviour: str, reason: str
) -> None:
    assert compare({"other:plain": behaviour, "pdv_mp:auto": "well"}, pair, folder, (1, 1))
    assert {cell.engine for cell in folder.cells()} == {"pdv_mp:auto"}
    assert len(folder.cells()) == 4
    (failure,) = folder.failures()
    assert failure.engine == "other:plain"
    assert reason in failure.reason
    text = page(summarise(folder.run(), folder.cells(), folder.failures()))
    assert f"other, plain (fake): {failure.reason}" in text


def test_an_engine_that_hangs_is_killed(tmp_path: Path) -> None:
    with loaded("hangs", tmp_path) as engine:
        with pytest.raises(PeerError, match=r"no answer within 0\.3 s"):
            engine.generate([[1, 2]], 4, 0.3)
        assert not psutil.pid_exists(engine.pid)


def test_a_peer_far_behind_is_measured_once_and_ours_always(
    pair: Pair, folder: PeersFolder
) -> None:
    engines = {"pdv_mp:plain": "slow", "other:plain": "quick", "third:plain": "slow"}
    assert compare(engines, pair, folder)
    rounds = {name: [c.round for c in folder.cells() if c.engine == name] for name in engines}
    assert set(rounds["third:plain"]) == {0}
    assert rounds["pdv_mp:plain"] == rounds["other:plain"]


def test_a_comparison_is_taken_up(pair: Pair, folder: PeersFolder) -> None:
    engines = {"pdv_mp:auto": "well", "other:plain": "quick"}
    assert not compare(engines, pair, folder, deadline=time.monotonic())
    assert folder.cells() == []
    assert compare(engines, pair, folder, (1, 1))
    whole = folder.cells()
    content = (folder.path / CELLS).read_bytes()
    (folder.path / CELLS).write_bytes(content[:-20])
    assert compare(engines, pair, folder, (1, 1))
    again = folder.cells()
    assert again[:-1] == whole[:-1]
    assert (again[-1].engine, again[-1].concurrency) == (whole[-1].engine, whole[-1].concurrency)
    assert compare(engines, pair, folder, (2, 1))
    assert len(folder.cells()) == len(whole) + 2 * len(LOADS)
    assert [cell.sitting for cell in folder.cells()] == [1] * (len(whole) - 1) + [2] + [3] * 4


def test_a_comparison_with_another_seed_is_not_taken_up(pair: Pair, folder: PeersFolder) -> None:
    assert compare({"pdv_mp:auto": "well"}, pair, folder, (1, 1))
    run = folder.run()
    other = RunRecord(**{f: getattr(run, f) for f in run.__struct_fields__ if f != "seed"}, seed=1)
    with pytest.raises(PeersError, match="other seed"):
        folder.take_up(other)


def test_another_version_of_an_engine_is_not_put_beside_what_was_measured(
    pair: Pair, folder: PeersFolder
) -> None:
    assert compare({"pdv_mp:auto": "well", "other:plain": "well"}, pair, folder, (1, 1))
    cells = [
        msgspec.structs.replace(cell, version="0.9") if cell.engine == "other:plain" else cell
        for cell in folder.cells()
    ]
    (folder.path / CELLS).write_bytes(b"".join(msgspec.json.encode(c) + b"\n" for c in cells))
    compare({"pdv_mp:auto": "well", "other:plain": "well"}, pair, folder, (2, 1))
    assert {cell.engine for cell in folder.cells() if cell.round == 1} == {"pdv_mp:auto"}
    (failure,) = folder.failures()
    assert (failure.engine, failure.reason) == (
        "other:plain",
        "it is 1.0 now, and was measured as 0.9 here",
    )


@pytest.mark.parametrize("name", ["versions", "source", "machine"])
def test_a_comparison_elsewhere_or_of_other_programs_is_not_taken_up(
    name: str, pair: Pair, folder: PeersFolder
) -> None:
    assert compare({"pdv_mp:auto": "well"}, pair, folder, (1, 1))
    run = folder.run()
    other = msgspec.structs.replace(run, environment={**run.environment, name: "another"})
    with pytest.raises(PeersError, match=f"another {name.removesuffix('s')}"):
        folder.take_up(other)
    folder.take_up(msgspec.structs.replace(run, environment={**run.environment, "state": "busy"}))


def test_prompts_follow_from_the_seed(pair: Pair) -> None:
    first, again, other = (PromptSource(pair.verifier, seed).warm_up(9, 3) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert [len(prompt) for prompt in first] == [9, 9, 9]


def test_the_best_rates_that_the_machine_reached_count(folder: PeersFolder) -> None:
    plan = Plan((), LOADS, (1, 2), (1, 1), 0, 1, 4, Limits(answer=SECONDS, judged=1))
    folder.begin(msgspec.structs.replace(run_record(plan), rates=None))
    folder.reached(RatesRecord(1, 2e10, 1e10, 1e11))
    assert folder.run().rates == RatesRecord(1, 2e10, 1e10, 1e11)
    folder.reached(RatesRecord(1, 1e10, 3e10, 2e11))
    assert folder.run().rates == RatesRecord(1, 2e10, 3e10, 2e11)
