"""Verdicts on runs whose truth is known: each way a claim can end, and that names decide nothing
but who is who."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from made_legacy import made_facts, write_legacy
from made_results import FolderInMemory, Truth, bare_cell

from bench.claims.judging import judge
from bench.claims.reading import read_claims
from bench.claims.tables import as_markdown, count_verdicts, write_claims
from bench.claims.verdicts import JUDGEMENTS, Measured, Verdict, judge_ratio
from bench.concurrent.bursts import Burst
from bench.concurrent.experiment import variants
from bench.concurrent.tables import rows
from bench.handoff.tables import write_csv
from bench.report.analysis import Analysis, analyse
from bench.results.records import Load
from bench.results.store import ResultsError

GRID = (1, 2, 4, 6, 8, 10, 12, 16, 32, 64, 72, 84, 96, 128)
LEVEL = 1_000_000
LISTED = read_claims()


def run_of(
    ratio: Callable[[int], float],
    concurrencies: Iterable[int] = GRID,
    *,
    pairs: tuple[str, ...] = ("shipped",),
    names: tuple[str, ...] = ("pd", "pdv", "baseline"),
    noise: float = 0.01,
    blocks: int = 8,
) -> Analysis:
    """A run with throughputs only; ``ratio``: the second name's over the first's by clients, at
    which the third has a quarter of the first's."""
    truth = Truth(candidates=names, concurrencies=tuple(concurrencies), pairs=pairs, blocks=blocks)
    run = truth.run()
    draw = np.random.default_rng(0)
    cells = []
    for pair in run.pairs:
        for load in run.loads:
            levels = (1.0, ratio(load.concurrency or 0), 0.25, 1.0)
            for block in range(1, blocks + 1):
                for number, candidate in enumerate(run.candidates):
                    level = 1.0 if candidate.twin_of else levels[number]
                    tokens = round(LEVEL * level * np.exp(draw.normal(0, noise)))
                    id = f"{pair.name}-{load.name}-{block}-{number}"
                    place = (candidate.name, load.name, block)
                    cells.append(bare_cell(run, id, *place, tokens, pair=pair.name))
    return analyse(FolderInMemory(run, cells, truth.end(run)))


def verdicts(analysis: Analysis, folder: Path) -> dict[str, Verdict]:
    return {verdict.claim.id: verdict for verdict in judge(analysis, folder)}


def labels(analysis: Analysis, folder: Path, *ids: str) -> list[str]:
    found = verdicts(analysis, folder)
    return [found[id].label for id in ids]


def test_a_run_that_shows_what_was_claimed_reproduces_it(tmp_path: Path) -> None:
    claimed = {128: 33.657, 96: 11.437, 84: 11.549, 72: 10.0, 64: 8.0, 32: 1.21, 1: 1.03, 2: 1.03}
    pair = "tinyllama-tinyllama"
    run = run_of(lambda clients: claimed.get(clients, 0.96), pairs=(pair,), noise=0.003)
    ids = ("tinyllama-128", "tinyllama-96", "tinyllama-84", "percent-32", "any-128", "gpus-128")
    ids += ("balanced-6-16", "slower-16", "worse-6-16", "better-32-up", "better-64-up", "valley")
    assert set(labels(run, tmp_path, *ids)) == {"reproduced"}
    found = verdicts(run, tmp_path)
    assert found["tinyllama-7b-84"].label == "not reproduced (on another pair)"
    assert found["worse-low"].label == "not reproduced"
    assert "the other way round" in found["worse-low"].evidence
    assert "tinyllama-tinyllama, C=128: 33." in found["tinyllama-128"].evidence


def test_equal_topologies_reproduce_no_gain_and_artefacts_need_their_evidence(
    tmp_path: Path,
) -> None:
    run = run_of(lambda clients: 1.0)
    large = ("tinyllama-128", "any-128", "gpus-64", "percent-96", "scaling", "average-tinyllama")
    assert set(labels(run, tmp_path, *large)) == {"not reproduced (on another pair)"}
    write_legacy(tmp_path)
    assert set(labels(run, tmp_path, *large)) == {"artefact (on another pair)"}
    found = verdicts(run, tmp_path)
    assert found["percent-32"].label == "not reproduced (on another pair)"
    text = found["tinyllama-128"].legacy
    assert text is not None
    assert "5.5 times overloaded" in text
    assert "by completed requests" in text


@pytest.mark.parametrize(
    ("facts", "capacities"),
    [
        (made_facts(), {"pd": 500.0, "pdv": 1500.0}),  # by all tokens, too, one is far ahead
        (made_facts(reference="pdv", candidate="pd"), None),  # the other way round
        (made_facts(reference="unified", candidate="pdv"), None),
    ],
)
def test_no_artefact_without_an_honest_ratio_of_about_one(
    facts: Any, capacities: Mapping[str, float] | None, tmp_path: Path
) -> None:
    write_legacy(tmp_path, facts=facts, capacities=capacities)
    run = run_of(lambda clients: 1.0, (1, 128))
    assert labels(run, tmp_path, "any-128") == ["not reproduced (on another pair)"]


def test_an_artefact_of_a_pair_of_the_documents_is_not_on_another_one(tmp_path: Path) -> None:
    write_legacy(tmp_path, facts=made_facts(pair="tinyllama-tinyllama"))
    run = run_of(lambda clients: 1.0, (1, 8), pairs=("tinyllama-tinyllama",))
    ids = ("any-128", "tinyllama-128", "tinyllama-34b-128")
    assert labels(run, tmp_path, *ids) == ["artefact", "artefact", "artefact (on another pair)"]


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    found = verdicts(run_of(lambda clients: 1.0, (1, 8), names=("pd", "pdv", "unified")), tmp_path)
    assert "C = 128 was not measured (closed loops of 1, 8" in found["any-128"].evidence
    assert found["early-3-baseline"].evidence == "baseline not measured"
    assert found["average-7b"].judgement == "not testable here"
    assert found["utilisation-pdv"].evidence == "no GPU"
    few = verdicts(run_of(lambda clients: 2.0, (32, 64, 128), blocks=3), tmp_path)
    assert "3 blocks are too few" in few["any-128"].evidence
    for id in ("any-128", "scaling", "successes", "failures", "valley", "latency-40"):
        assert few[id].judgement == "not testable here"


def test_exchanging_two_names_exchanges_the_verdicts(tmp_path: Path) -> None:
    ahead = run_of(lambda clients: 1.3)
    behind = run_of(lambda clients: 1.3, names=("pdv", "pd", "baseline"))
    better, worse = ("better-64-up", "better-32-up"), ("worse-6-16", "worse-low")
    assert set(labels(ahead, tmp_path, *better)) == {"reproduced (on another pair)"}
    assert set(labels(ahead, tmp_path, *worse)) == {"not reproduced (on another pair)"}
    assert set(labels(behind, tmp_path, *better)) == {"not reproduced (on another pair)"}
    assert set(labels(behind, tmp_path, *worse)) == {"reproduced (on another pair)"}
    counted = [
        verdicts(run, tmp_path)[id].label
        for run in (ahead, behind)
        for id in ("successes", "failures")
    ]
    yes, no = "reproduced (on another pair)", "not reproduced (on another pair)"
    assert counted == [yes, no, no, yes]


def test_maxima_and_growth(tmp_path: Path) -> None:
    growing = run_of(lambda clients: float(np.exp(0.0217 * (clients - 32))) if clients > 32 else 1)
    found = verdicts(growing, tmp_path)
    assert found["scaling"].label == "reproduced (on another pair)"
    assert found["maximum-7b"].label == "not reproduced (on another pair)"
    assert "pdv is fastest at 128 clients" in found["maximum-7b"].evidence
    peak = run_of(lambda clients: 2.0 if clients == 64 else 1.0)
    text = verdicts(peak, tmp_path)["maximum-7b"].evidence
    assert "pdv is fastest at 64 clients" in text


def test_averages_are_of_the_whole_grid(tmp_path: Path) -> None:
    run = run_of(lambda clients: 1.73, noise=0.0001)
    same = ("average-tinyllama", "average-range")
    assert set(labels(run, tmp_path, *same)) == {"reproduced (on another pair)"}
    assert labels(run, tmp_path, "average-7b") == ["not reproduced (on another pair)"]


def test_options_are_judged_by_candidates_that_differ_in_nothing_else(tmp_path: Path) -> None:
    truth = Truth(candidates={"wide": "pdv", "narrow": "pdv"}, twin=False, concurrencies=(64,))
    run = truth.run()
    queues = {"wide": 1.2, "narrow": 1.0}
    for extra, expected in (({}, "reproduced (on another pair)"), ({"groups": 2}, None)):
        run = msgspec.structs.replace(
            run,
            candidates=[
                msgspec.structs.replace(
                    one,
                    options={
                        "queue_factor": queues[one.name],
                        **(extra if one.name == "wide" else {}),
                    },
                )
                for one in run.candidates
            ],
        )
        cells = [
            bare_cell(run, f"{name}-{block}", name, "C=64", block, tokens + block)
            for block in range(1, 9)
            for name, tokens in (("wide", 120_000), ("narrow", 100_000))
        ]
        found = verdicts(analyse(FolderInMemory(run, cells, truth.end(run))), tmp_path)
        assert found["queue-factor"].label == (expected or "not testable here")
        assert found["spin"].judgement == "not testable here"


def test_acceptance_latency_and_gpus_come_from_the_cells(tmp_path: Path) -> None:
    def rate(candidate: str, load: Load) -> float:
        return {"pd": 1500.0, "pdv": 3000.0}.get(candidate, 500.0)

    truth = Truth(
        candidates=("pd", "pdv", "baseline"), concurrencies=(32,), rate=rate, gpu=True, tokens=12
    )
    found = verdicts(analyse(truth.in_memory()), tmp_path)
    assert found["acceptance"].label == "not reproduced (on another pair)"
    assert "of its drafts" in found["acceptance"].evidence
    assert found["latency-32-up"].label == "not reproduced (on another pair)"
    assert found["utilisation-equal"].label == "reproduced (on another pair)"
    assert found["utilisation-pdv"].label == "not reproduced (on another pair)"
    (mean,) = (one.value for one in found["latency-32-up"].findings if one.value is not None)
    assert mean == pytest.approx(0.5, rel=0.25)


def burst(requests: int, time_s: float, **changes: Any) -> Burst:
    values: dict[str, Any] = {
        "variant": "chunked prefill + prefix caching",
        "requests": requests,
        "round": 1,
        "completed": requests,
        "time_s": time_s,
        "tokens": 50 * requests,
        "prompt_tokens": 8 * requests,
        **changes,
    }
    names = Burst.__struct_fields__
    return Burst(**{name: value for name, value in values.items() if name in names})


def test_the_concurrent_test_is_read_from_its_table(tmp_path: Path) -> None:
    run = run_of(lambda clients: 1.0, (1, 8))
    ids = ("target-1", "target-5", "target-50", "concurrent-steady", "concurrent-100")
    assert set(labels(run, tmp_path, *ids)) == {"not testable here"}
    bursts = [burst(1, 0.3), burst(5, 0.5), burst(50, 5.0), burst(100, 9.0)]
    bursts.append(burst(200, 9.0, refused=3, completed=197))
    write_csv(tmp_path / "concurrent.csv", rows(bursts, variants(8, {}), {}))
    met, missed = "reproduced (on another pair)", "not reproduced (on another pair)"
    assert labels(run, tmp_path, *ids) == [missed, met, met, met, missed]
    found = verdicts(run, tmp_path)
    assert found["concurrent-5"].judgement == "not testable here"
    assert "5 at once took 0.5 s" in found["concurrent-5"].evidence
    (tmp_path / "concurrent.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ResultsError, match=r"concurrent\.csv is not a table"):
        judge(run, tmp_path)


def test_sizes_and_quotients_need_no_run(tmp_path: Path) -> None:
    found = verdicts(run_of(lambda clients: 1.0, (1, 8)), tmp_path)
    assert found["size-1"].label == "reproduced"
    assert found["size-7b"].label == "not reproduced"
    assert "a ratio of 6.13" in found["size-7b"].evidence
    assert "a ratio of 30.7" in found["size-34b"].evidence
    assert found["batched-tokens"].label == "reproduced"
    assert found["concurrent-34"].judgement == "not testable here"
    assert "follows from the document's figures" in found["concurrent-34"].evidence


ABOVE, BELOW, NEITHER = "above", "below", "neither"


@pytest.mark.parametrize(
    ("measured", "claimed", "judgement"),
    [
        (Measured(1.2, 1.1, 1.3, ABOVE, 1.05), (1.15, 1.25), "reproduced"),
        (Measured(1.2, 1.1, 1.3, ABOVE, 1.05), (1.35, 1.4), "not reproduced"),
        (Measured(1.2, 1.1, 1.3, ABOVE, 1.05), (0.9, 0.95), "not reproduced"),
        (Measured(1.2, 1.1, 1.3, ABOVE, 1.05), (1.0, None), "reproduced"),
        (Measured(1.2, 1.1, 1.3, ABOVE, 1.05), (None, 1.0), "not reproduced"),
        (Measured(0.9, 0.8, 0.95, BELOW, 1.05), (None, 1.0), "reproduced"),
        (Measured(1.0, 0.9, 1.1, NEITHER, 1.05), (1.0, None), "not reproduced"),
        (Measured(1.0, 0.9, 1.1, NEITHER, 1.05), (1.02, 1.04), "not testable here"),
        (Measured(1.0, 0.9, 1.1, NEITHER, None), (1.02, 1.04), "not testable here"),
        (Measured(1.0, 0.9, 1.1, NEITHER, 1.05), (1.08, 1.09), "not reproduced"),
        (Measured(1.0, 0.99, 1.01, NEITHER, 1.05), (1.02, 1.04), "not reproduced"),
        (Measured(1.0, 0.9, 1.1, NEITHER, 1.05), (0.97, 1.03), "reproduced"),
        (Measured(1.2, 1.1, 1.3, ABOVE, 1.05), (0.97, 1.03), "not reproduced"),
    ],
)
def test_a_ratio_against_a_claim(measured: Measured, claimed: Any, judgement: str) -> None:
    assert judge_ratio(measured, claimed).judgement == judgement


def test_the_tables_have_every_claim(tmp_path: Path) -> None:
    write_legacy(tmp_path)
    found = judge(run_of(lambda clients: 0.9, (1, 8, 32)), tmp_path)
    assert {verdict.judgement for verdict in found} == set(JUDGEMENTS)
    write_claims(found, tmp_path)
    with (tmp_path / "claims.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["id"] for row in table] == [claim.id for claim in LISTED.claims]
    assert all(row["evidence"] for row in table)
    counted = count_verdicts(found)
    assert sum(counted.values()) == len(LISTED.claims)
    page = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert page == as_markdown(found)
    for label, count in counted.items():
        assert f"| {label} | {count} |" in page
    for document in LISTED.documents:
        assert f"## {document}" in page
        section = page.partition(f"## {document}\n")[2].partition("\n## ")[0]
        lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
        cited = sum(any(c.document == document for c in v.claim.cited) for v in found)
        assert len(lines) == cited
        assert all(line.replace("\\|", "").count("|") == 6 for line in lines)
    assert page.index("| verdict | claims |") < page.index("## architecture_analysis.md")
