"""``bench.concurrent``: bursts until the server breaks, their targets, and the files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import tiny_arguments
from server_process import ServerProcess
from tiny_model import TinyPair

from bench.concurrent import command
from bench.concurrent.bursts import Burst, Bursts
from bench.concurrent.command import concurrent
from bench.concurrent.experiment import Experiment, Servers, Variant, variants
from bench.concurrent.tables import TARGETS, markdown, rows, said_of_cache, verdict
from bench.load.errors import LoadError
from pdv_mp.client.llm import LaunchError

FIRST, SECOND = (Variant(name, name == "a", True, {}, climbs=name == "a") for name in "ab")


def burst(variant: Variant, requests: int, round: int, time_s: float = 0.1, **fields: Any) -> Burst:
    whole = requests - fields.get("refused", 0) - fields.get("failed", 0)
    return Burst(
        variant=variant.name,
        requests=requests,
        round=round,
        time_s=time_s,
        latency_s=[time_s] * whole,
        ttft_s=[0.01] * whole,
        tokens=50 * whole,
        prompt_tokens=8 * whole,
        cached_tokens=4 * whole,
        pss_bytes=(100 + requests) << 20,
        rss_bytes=300 << 20,
        **fields,
    )


def test_levels_are_climbed_until_one_breaks_and_rounds_interleave() -> None:
    asked: list[tuple[str, int, int]] = []

    def ask(variant: Variant, requests: int, round: int) -> Burst:
        asked.append((variant.name, requests, round))
        if variant is FIRST and requests >= 100:
            return burst(variant, requests, round, refused=1)
        if variant is SECOND and requests >= 10:
            raise LoadError("the server\nhas ended")
        return burst(variant, requests, round)

    experiment = Experiment(ask, [FIRST, SECOND], (1, 5, 10, 50, 100, 200), repeats=4)
    experiment.run()
    assert experiment.broken == {"a": 100, "b": 10}
    assert [place for place in asked if place[2] == 0] == [
        *[("a", 1, 0), ("a", 5, 0), ("b", 1, 0), ("b", 5, 0)]
    ]
    assert [place for place in asked if place[2] == 1] == [
        *[("b", 1, 1), ("b", 5, 1), ("b", 10, 1)],
        *[("a", level, 1) for level in (1, 5, 10, 50, 100)],
    ]
    assert asked[-5:] == [*[("a", n, 4) for n in (1, 5, 10)], *[("b", n, 4) for n in (1, 5)]]
    assert len([b for b in experiment.bursts if b.requests == 50]) == 3
    assert all(b.round for b in experiment.bursts)
    (lost,) = (b for b in experiment.bursts if b.error)
    assert lost.error == "the server has ended"
    assert (lost.variant, lost.requests, lost.failed, lost.is_whole) == ("b", 10, 10, False)


def test_no_round_begins_that_would_go_beyond_the_budget() -> None:
    said: list[str] = []

    def ask(variant: Variant, requests: int, round: int) -> Burst:
        return burst(variant, requests, round)

    experiment = Experiment(ask, [FIRST], (1, 5), repeats=9, budget=0.0, say=said.append)
    experiment.run()
    assert [(b.requests, b.round) for b in experiment.bursts] == [(1, 1), (5, 1)]
    assert said[-1] == "the budget of 0 s was spent"


def test_rows_say_what_was_measured_and_whether_targets_were_met() -> None:
    bursts = [burst(FIRST, 1, n, time_s) for n, time_s in enumerate([0.1, 0.3, 0.2], 1)]
    bursts += [burst(FIRST, 5, n, 2.0 + n / 10) for n in range(1, 7)]
    bursts += [burst(FIRST, 50, 1, 25.0), burst(FIRST, 100, 1, 9.0, refused=3, failed=1)]
    bursts += [Burst(variant="b", requests=5, round=1, error="the server has ended")]
    found = rows(bursts, [FIRST, SECOND], {"a": 100, "b": 5})
    of = {(row["variant"], row["requests_at_once"]): row for row in found}
    assert list(of) == [("a", 1), ("a", 5), ("a", 50), ("a", 100), ("b", 5)]
    one, five = of["a", 1], of["a", 5]
    assert (one["time_s"], one["time_min_s"], one["time_max_s"]) == (0.2, 0.1, 0.3)
    assert (one["time_low_s"], one["target"]) == (None, "met in 1 of 3")
    assert five["time_s"] == pytest.approx(2.35)
    assert (five["time_low_s"], five["time_high_s"]) == pytest.approx((2.1, 2.6))
    assert (five["target_s"], five["target"]) == (3.0, "met")
    assert five["requests_per_s"] == pytest.approx(5 / 2.35, rel=0.01)
    assert five["tokens_per_s"] == pytest.approx(250 / 2.35, rel=0.01)
    assert five["cached_prompt_share"] == 0.5
    assert five["ttft_ms"] == pytest.approx(10)
    assert of["a", 50]["target"] == "not met"
    broken = of["a", 100]
    assert (broken["refused"], broken["failed"], broken["breaks"]) == (3, 1, True)
    assert (broken["repeats"], broken["time_s"], broken["target"]) == (0, None, None)
    assert broken["server_pss_bytes"] == 200 << 20
    assert of["b", 5]["target"] == "not met"  # what broke has met nothing
    page = markdown(found)
    assert "| a | 1 | 0.200 (0.100–0.300) | 3 | under 0.2 s: met in 1 of 3 | 5.0 |" in page
    assert "| a | 100 | breaks: 3 refused, 1 failed | 0 | – |" in page
    assert "| b | 5 | breaks: the server has ended |" in page
    assert "- a: breaks at 100 at once." in page
    assert said_of_cache(found, 14) == "Prefix caching, where it is on, kept 50% of the prompt."
    nothing = [{**row, "cached_prompt_share": 0.0} for row in found]
    assert said_of_cache(nothing, 14).endswith("and the prompt has 14.")
    assert said_of_cache([], 14).startswith("Nothing is known")
    unbroken = markdown(rows(bursts[:3], [FIRST], {}))
    assert "- a: does not break up to 1, the most at once that were tried." in unbroken
    assert verdict([0.2], 0.2) == "not met"


def test_variants_differ_in_what_they_say() -> None:
    found = variants(14, {"topology_file": "x"})
    assert [(v.chunked_prefill, v.prefix_caching) for v in found] == [
        *[(True, True), (True, False), (False, True), (False, False)]
    ]
    assert [v.climbs for v in found] == [True, False, False, False]
    for variant in found:
        assert variant.options["topology_file"] == "x"
        assert variant.options["enable_prefix_caching"] == variant.prefix_caching
        whole = variant.options.get("max_num_batched_tokens") == 14
        assert (
            whole == (variant.options.get("prefill_priority") == 1) == (not variant.chunked_prefill)
        )
    assert len({v.name for v in found}) == 4


def test_a_server_that_refuses_what_is_too_much(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server("--max-open-requests", "4")
    with Bursts(server.ipc, server.pids, lambda: True) as bursts:
        few = bursts.run("def add(", 6, variant="a", requests=3, round=1)
        # So long that none of them ends before all have come.
        many = bursts.run("def add(", 100, variant="a", requests=9, round=1)
        again = bursts.run("def add(", 6, variant="a", requests=4, round=1)
    assert few.is_whole
    assert again.is_whole
    assert (few.tokens, len(few.latency_s), few.failed) == (18, 3, 0)
    assert few.time_s is not None
    assert 0 < max(few.ttft_s) <= max(few.latency_s) <= few.time_s
    assert few.ttft_mean_s is not None
    assert few.prompt_tokens > few.cached_tokens >= 0
    assert few.rss_bytes is not None
    assert few.pss_bytes is None or 2**20 < few.pss_bytes <= few.rss_bytes
    assert not many.is_whole
    assert many.refused == 5
    assert len(many.latency_s) == 4


class NoServers(Servers):
    """In place of real ones; breaks at 50."""

    starts: BaseException | None = None

    def start(self) -> None:
        if self.starts is not None:
            raise self.starts

    def __call__(self, variant: Variant, requests: int, round: int) -> Burst:
        refused = 2 if requests >= 50 else 0
        return burst(variant, requests, round, refused=refused)


def test_the_command_writes_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "Servers", NoServers)
    output = tmp_path / "deep" / "results"
    done = CliRunner().invoke(concurrent, ["--output", str(output), "--repeats", "2"])
    assert done.exit_code == 0, done.output
    with (output / "concurrent.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["requests_at_once"] for row in table[:4]] == ["1", "5", "10", "50"]
    assert {row["schema_version"] for row in table} == {"1"}
    assert table[3]["breaks"] == "True"
    facts = json.loads((output / "concurrent.json").read_text(encoding="utf-8"))
    assert facts["schema_version"] == 1
    assert facts["prompt"] == "Explain quantum computing in simple terms"
    assert facts["targets_s"] == {str(level): target for level, target in TARGETS.items()}
    assert set(facts["breaking_points"].values()) == {50}
    assert len(facts["bursts"]) == len(facts["variants"]) * (3 * 2 + 1)
    assert "cannot be switched off" in facts["chunked_prefill"]
    page = (output / "concurrent.md").read_text(encoding="utf-8")
    assert page in done.output
    assert "breaks: 2 refused, 0 failed" in page


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--levels", "1,x"], 2, "is not a list of numbers"),
        (["--prompt", ""], 2, "it has no tokens"),
        (["--budget", "soon"], 2, "is not a time"),
        (["--option", "model=/no/such/folder"], 1, "no such folder"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], code: int, said: str) -> None:
    done = CliRunner().invoke(concurrent, arguments)
    assert done.exit_code == code
    assert said in done.output
    assert "Traceback" not in done.output


def test_what_cannot_start_or_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "Servers", NoServers)
    blocked = tmp_path / "file"
    blocked.touch()
    done = CliRunner().invoke(concurrent, ["--output", str(blocked / "results"), "--repeats", "1"])
    assert done.exit_code == 1
    assert "Not a directory" in done.output
    stops = [(LaunchError("no such model"), 1, "no such model"), (KeyboardInterrupt(), 130, "")]
    for stop, code, said in stops:
        monkeypatch.setattr(NoServers, "starts", stop)
        done = CliRunner().invoke(concurrent, ["--output", str(tmp_path / "results")])
        assert (done.exit_code, said in done.output) == (code, True)
        assert not list((tmp_path / "results").iterdir())


@pytest.mark.slow
def test_a_short_run(tiny_pair: TinyPair, run_place: object, tmp_path: Path) -> None:
    flags = iter(tiny_arguments(tiny_pair))
    options = [
        f"{name.removeprefix('--')}={value}" for name, value in zip(flags, flags, strict=True)
    ]
    given = [part for option in options for part in ("--option", option)]
    arguments = ["--levels", "1,3", "--tokens", "5", "--repeats", "2", "--output", str(tmp_path)]
    done = CliRunner().invoke(concurrent, [*arguments, *given])
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "concurrent.json").read_text(encoding="utf-8"))
    assert set(facts["breaking_points"].values()) == {None}
    for found in facts["bursts"]:
        assert found["tokens"] == 5 * found["requests"]
        assert found["prompt_tokens"] == facts["prompt_tokens"] * found["requests"]
        caching = facts["variants"][found["variant"]]["enable_prefix_caching"]
        assert bool(found["cached_tokens"]) == caching
