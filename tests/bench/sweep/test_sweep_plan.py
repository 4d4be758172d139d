"""``bench.sweep.plan`` and ``pairs``: what is wrong is said in a sentence before anything runs."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from simulated_sweep import made_run
from tiny_model import TinyPair

from bench.results.records import Candidate, Load, Objective, Pair, Run
from bench.servers import SAME_WORK
from bench.sweep.errors import PlanError
from bench.sweep.pairs import find_pairs, fingerprint, read_pairs
from bench.sweep.plan import (
    configure,
    first_difference,
    make_candidates,
    make_loads,
    parse_objective,
    shortest_block,
    typed_options,
)
from pdv_mp import assets


def test_candidates_have_typed_options_of_their_own_and_a_twin() -> None:
    named = {"unified": ("unified", {}), "pd+kv-handoff=copy": ("pd", {"kv-handoff": "copy"})}
    found = make_candidates(named, {"max-num-seqs": "8", "kv-cache-memory": "1M"}, again=True)
    common = {**SAME_WORK, "max_num_seqs": 8, "kv_cache_memory": 1 << 20}
    assert found == [
        Candidate(name="unified", topology="unified", options=common),
        Candidate(
            name="pd+kv-handoff=copy", topology="pd", options={**common, "kv_handoff": "copy"}
        ),
        Candidate(name="unified (again)", topology="unified", options=common, twin_of="unified"),
    ]
    assert len(make_candidates(named, {}, again=False)) == 2
    assert typed_options({"enable-prefix-caching": "true"}) == {"enable_prefix_caching": True}


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["unifed"], {}, r"topology 'unifed' is not one of .*; did you mean 'unified'\?"),
        (["auto"], {}, "topology 'auto' is not one of"),
        (["pd"], {"max-num-seq": "8"}, r"no option 'max-num-seq'; did you mean 'max_num_seqs'\?"),
        (["pd"], {"max-num-seqs": "few"}, "option max-num-seqs: 'few' is not a valid integer"),
        (["pd"], {"draft-model": "x"}, "'draft-model' of the servers is set by --pairs"),
        (["pd"], {"port": "1"}, "'port' of the servers is set by the sweep itself"),
        (["pd", "pd (again)"], {}, r"topology 'pd \(again\)' is not one of"),
    ],
)
def test_wrong_candidates_are_refused(names: list[str], options: dict[str, str], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        make_candidates({name: (name, {}) for name in names}, options, again=True)


def test_one_candidate_without_a_twin_is_nothing_to_compare() -> None:
    with pytest.raises(PlanError, match="nothing to compare: name two topologies, or use --again"):
        make_candidates({"pd": ("pd", {})}, {}, again=False)


def test_loads_are_named_after_what_they_are() -> None:
    found = make_loads([1, 8], [4.0, 0.5], 0.5, Path("some/day.jsonl"))
    assert [load.name for load in found] == [
        *("C=1", "C=8", "rate=4,burstiness=0.5", "rate=0.5,burstiness=0.5", "trace=day.jsonl")
    ]
    assert found[0] == Load(name="C=1", kind="closed", concurrency=1)
    assert found[2] == Load(name=found[2].name, kind="open", rate=4.0, burstiness=0.5)
    assert found[4] == Load(name=found[4].name, kind="trace", trace="some/day.jsonl")
    assert [load.name for load in make_loads([], [2.0], 1.0, None)] == ["rate=2"]
    assert [load.concurrency for load in make_loads([], [], 1.0, None)] == [1, 8, 32]
    with pytest.raises(PlanError, match="the load C=4 is given twice"):
        make_loads([4, 4], [], 1.0, None)


def test_objectives_are_read() -> None:
    assert parse_objective("") == Objective()
    assert parse_objective("ttft=500,tpot=50") == Objective(ttft_ms=500, tpot_ms=50)
    assert parse_objective("e2e=3e3") == Objective(e2e_ms=3000)


@pytest.mark.parametrize("text", ["ttft", "ttft=", "tft=5", "ttft=0", "ttft=nan", "e2e=1,e2e=2"])
def test_wrong_objectives_are_refused(text: str) -> None:
    with pytest.raises(PlanError, match="is not of the form ttft=500"):
        parse_objective(text)


def test_a_block_takes_as_long_as_its_windows_at_least() -> None:
    assert shortest_block(made_run(window=2.0, ramp=0.5)) == 2 * 3 * 2.5


ALTERED: list[tuple[dict[str, Any], str]] = [
    ({"seed": 1}, "seed is 0 there and 1 now"),
    ({"window": 2.0}, "window is 1.0 there and 2.0 now"),
    ({"reference": "two"}, 'reference is "one" there and "two" now'),
    ({"candidates": made_run().candidates[:2]}, "candidates[2] is 'one (again)' there and missing"),
    ({"loads": [Load(name="C=2", kind="closed", concurrency=2)]}, "loads[0].name is"),
    ({"pairs": [Pair(name="shipped", model_fingerprint="x")]}, "pairs[0].model_fingerprint is"),
    ({"objective": Objective(e2e_ms=5.0)}, "objective.e2e_ms is missing there and 5.0 now"),
    ({"workload": {"source": "plain"}}, 'workload.source is missing there and "plain" now'),
    ({"environment": {"versions": {"torch": "3"}}}, 'versions.torch is "2" there and "3" now'),
    ({"environment": {"versions": {"torch": "2"}, "source": "y"}}, 'source is "x" there'),
]


@pytest.mark.parametrize(("changes", "said"), ALTERED)
def test_the_first_difference_of_two_runs_is_named(changes: dict[str, Any], said: str) -> None:
    found = first_difference(made_run(), made_run(**changes))
    assert found is not None
    assert said in found


def test_equal_runs_may_begin_at_another_time_with_another_budget() -> None:
    environment = {**made_run().environment, "state": {"load_average": [9, 9, 9]}}
    other = made_run(started="now", command=["x"], budget=5.0, environment=environment)
    assert first_difference(made_run(), other) is None
    read = msgspec.json.decode(msgspec.json.encode(other), type=Run)
    assert first_difference(made_run(), read) is None


def test_pairs_are_lines_of_a_file(tmp_path: Path, tiny_pair: TinyPair) -> None:
    file = tmp_path / "pairs.yaml"
    line = f"tiny: {{verifier: {tiny_pair.verifier}, draft: {tiny_pair.draft}}}"
    file.write_text(f"# mine\nshipped:\n{line}\n", encoding="utf-8")
    shipped, tiny = find_pairs(read_pairs(file))
    assert (shipped.verifier, shipped.draft) == (assets.verifier_path(), assets.draft_path())
    assert (tiny.name, tiny.verifier, tiny.draft) == ("tiny", tiny_pair.verifier, tiny_pair.draft)
    assert tiny.record.model == str(tiny_pair.verifier)
    weights = (tiny_pair.verifier / "model.safetensors").read_bytes()
    assert tiny.record.model_fingerprint == hashlib.sha256(weights).hexdigest()
    assert tiny.record.draft_fingerprint != tiny.record.model_fingerprint
    assert read_pairs(None) == [Pair(name="shipped")]


def test_the_pairs_of_the_sources_are_three_lines() -> None:
    file = Path(__file__).resolve().parents[3] / "bench" / "sweep" / "pairs_of_the_sources.yaml"
    found = read_pairs(file)
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if not line.startswith("#")]) == len(found) == 3
    assert len({pair.draft_model for pair in found}) == 1
    assert [str(pair.model).rpartition("-")[0].rpartition("-")[2] for pair in found]
    for size, pair in zip(("1.1B", "7b", "34b"), found, strict=True):
        assert size in str(pair.model)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no pair"),
        ("- shipped", "must be a map of pairs by name"),
        ("a: {verifier: x}", "'a' must be a map of verifier and draft, as in a: {verifier"),
        ("a: {verifier: x, draft: 3}", "'a': draft must be a folder or a hub id, not 3"),
        ("a: {verifier: x, draft: y}\na: {verifier: x, draft: y}", "'a' is given twice in line 2"),
        ("shipped: {verifier: x, draft: y}", "the pair that comes with the package; name yours"),
        ("1: {verifier: x, draft: y}", "1 is no name of a pair"),
        ("a: [", "is not plain YAML: .* in line 1"),
    ],
)
def test_malformed_files_of_pairs_are_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "pairs.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(PlanError, match=said) as caught:
        read_pairs(file)
    assert f"--pairs {file}" in str(caught.value)


def test_a_pair_that_cannot_be_had_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot read --pairs .*: No such file"):
        read_pairs(tmp_path / "none.yaml")
    pair = Pair(name="big", model=str(tmp_path / "none"), draft_model=str(assets.draft_path()))
    with pytest.raises(PlanError, match=r"pair 'big' cannot be had: .*none: no such folder; `pdv-"):
        find_pairs([Pair(name="shipped"), pair])
    hub = Pair(name="hub", model="no-such/model", draft_model=str(assets.draft_path()))
    with pytest.raises(
        PlanError, match=r"pair 'hub' cannot be had: no-such/model: .*inflate` makes"
    ):
        find_pairs([hub])


def test_the_fingerprint_of_several_files_is_that_of_their_sums(tmp_path: Path) -> None:
    for number in (2, 1):
        name = f"model-0000{number}-of-00002.safetensors"
        (tmp_path / name).write_bytes(b"weights" * number)
    command = "sha256sum *.safetensors | sha256sum | cut -d ' ' -f 1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert fingerprint(tmp_path) == done.stdout.strip()


def test_servers_are_checked_before_they_start(tiny_pair: TinyPair) -> None:
    record = Pair(name="tiny", model=str(tiny_pair.verifier), draft_model=str(tiny_pair.draft))
    (pair,) = find_pairs([record])
    good = Candidate(name="x", topology="pd", options={"max_num_seqs": 8})
    found = configure(pair, good)
    assert (found.pair, found.candidate) == ("tiny", "x")
    assert found.options["topology"] == "pd"
    assert found.options["scheduling"]["max_num_seqs"] == 8
    assert found.options["model"]["model"] == str(tiny_pair.verifier)
    wrong = [
        ({"max_model_len": 100000}, "x with the pair 'tiny': .*100000"),
        ({"kv_cache_memory": 1}, "x with the pair 'tiny': --kv-cache-memory 1 is too small"),
    ]
    for options, said in wrong:
        with pytest.raises(PlanError, match=said):
            configure(pair, Candidate(name="x", topology="pd", options=options))
