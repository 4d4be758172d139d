"""``pdv-bench report``: a page that needs nothing beside it, and says what failed or is missing."""

from __future__ import annotations

import base64
import csv
import json
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_legacy import write_legacy
from made_results import Truth, make_results

from bench.cli import main
from bench.report.analysis import Analysis, analyse
from bench.report.command import build_report
from bench.report.page_sources import concurrent
from bench.results.records import Load
from bench.results.store import ResultsError, ResultsFolder

PICTURES = {
    "throughput_comparison",
    "latency_comparison",
    "gpu_utilization",
    "acceptance_rate",
    "improvement_heatmap",
    "token_time",
    "orchestration_share",
    "legacy_and_honest",
    "pareto",
}
DIED = "the verify worker died: killed by <signal> 9"
VOID = {"meta", "img", "link", "br", "hr", "input"}


def rate(candidate: str, load: Load) -> float:
    return {"unified": 900.0, "pd": 700.0, "pdv": 500.0}[candidate]


class Reader(HTMLParser):
    """What a page consists of; tags that are not closed as they were opened are errors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def of(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in tags]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on a run with a load of each kind, with cells that failed and one that is invalid,
    and with a legacy window and a concurrent test."""
    path = tmp_path_factory.mktemp("results")
    make_results(
        path,
        rates=(5.0,),
        rate=rate,
        window=0.5,
        ramp=0.1,
        failed={("pdv", "C=32", block): DIED for block in range(9)},
        invalid={("pd", "C=8", 3): "the clients were late by 12 ms"},
    )
    write_legacy(path)
    write_concurrent(path)
    build_report(path)
    return path


def write_concurrent(folder: Path) -> None:
    """Two rows of the concurrent test, the last one broken."""
    row = {
        "schema_version": 1,
        "variant": "chunked, cached",
        "chunked_prefill": "on",
        "prefix_caching": "on",
        "requests_at_once": 5,
        "repeats": 3,
        "time_s": 1.25,
        "time_min_s": 1.0,
        "time_max_s": 1.5,
        "target_s": 3.0,
        "target": "met",
        "requests_per_s": 4.0,
        "tokens_per_s": 200.0,
        "ttft_ms": 40.0,
        "server_pss_bytes": 2**28,
        "server_rss_bytes": 2**29,
        "refused": 0,
        "failed": 0,
        "breaks": False,
        "error": None,
    }
    lost = dict.fromkeys(("time_s", "time_min_s", "time_max_s", "target_s", "target"))
    broken = {**row, **lost, "requests_at_once": 200, "repeats": 0, "refused": 72, "breaks": True}
    with (folder / "concurrent.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerows([row, broken])
    facts = {"prompt": "Why?", "max_tokens": 50, "topology": "unified", "chunked_prefill": "On."}
    (folder / "concurrent.json").write_text(json.dumps(facts), encoding="utf-8")


@pytest.fixture(scope="module")
def page(folder: Path) -> Reader:
    return Reader((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_needs_nothing_beside_it(folder: Path, page: Reader) -> None:
    assert not page.of("script", "link", "iframe", "object")
    assert all(str(found["src"]).startswith("data:image/") for found in page.of("img"))
    for link in page.of("a"):
        target = str(link["href"])
        assert target.startswith("#") or (folder / target).is_file()
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "url(" not in text
    assert "@import" not in text
    assert len(text) < 1_500_000


def test_the_page_is_well_formed(page: Reader) -> None:
    ids = Counter(found["id"] for _, found in page.tags if "id" in found)
    assert max(ids.values()) == 1
    assert {str(a["href"])[1:] for a in page.of("a") if str(a["href"]).startswith("#")} <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(found.get("scope") in ("row", "col") for found in page.of("th"))
    assert len(page.of("caption")) == len(page.of("table"))


def test_every_picture_has_its_words_and_its_files(folder: Path, page: Reader) -> None:
    files = {path.name for path in (folder / "plots").iterdir()}
    assert files == {f"{name}.{kind}" for name in PICTURES for kind in ("png", "svg", "csv")}
    assert {found["id"] for found in page.of("figure")} == PICTURES
    assert all(len(str(found["alt"])) > 80 for found in page.of("img"))
    for figure, image in zip(page.of("figure"), page.of("img"), strict=True):
        inline = base64.b64decode(str(image["src"]).partition(",")[2])
        sizes = re.findall(r"font-size: ([0-9.]+)px", inline.decode("utf-8"))
        assert min(map(float, sizes)) >= 8
        assert inline == (folder / "plots" / f"{figure['id']}.svg").read_bytes()


def test_sections_are_in_order(page: Reader) -> None:
    anchors = [found["id"] for found in page.of("h2")]
    assert anchors[:6] == ["recommendation", "sureness", "pictures", "time", "valley", "legacy"]
    assert anchors[6:] == ["claims", "concurrent", "modes", "definitions", "method", "problems"]


def test_what_failed_is_there(folder: Path, page: Reader) -> None:
    text = " ".join(page.text)
    assert DIED in text
    assert "the clients were late by 12 ms" in text
    for name in ("throughput_comparison", "improvement_heatmap", "token_time"):
        assert ">failed<" in (folder / "plots" / f"{name}.svg").read_text(encoding="utf-8")
    rows = numbers(folder, "throughput_comparison")
    (lost,) = [r for r in rows if (r["candidate"], r["load"]) == ("pdv", "C=32")]
    assert (lost["blocks"], lost["tokens_per_s"], lost["problems"]) == ("0", "", "9")


def test_optional_parts_are_shown(folder: Path, page: Reader) -> None:
    text = " ".join(page.text)
    assert "This part was not measured" not in text
    assert "under 3 s: met" in text
    assert "72 refused, 0 failed" in text
    assert "chunked, cached: breaks at 200 at once." in text
    assert "“Why?”, 50 tokens" in text
    rows = numbers(folder, "legacy_and_honest")
    assert len(rows) == 8
    assert {row["admission"] for row in rows} == {"bounded", "unbounded"}


def test_a_wrong_table_of_the_concurrent_test_is_named(tmp_path: Path) -> None:
    (tmp_path / "concurrent.csv").write_text("schema_version,variant\n1,x\n", encoding="utf-8")
    with pytest.raises(ResultsError, match="is not a table of the concurrent test: "):
        concurrent(tmp_path)


def numbers(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "plots" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def analysis(folder: Path) -> Analysis:
    return analyse(ResultsFolder(folder))


def test_intervals_are_those_of_the_analysis(folder: Path, analysis: Analysis) -> None:
    for row in numbers(folder, "throughput_comparison"):
        found = analysis.cell(row["pair"], row["candidate"], row["load"]).throughput
        names = ("tokens_per_s", "tokens_per_s_low", "tokens_per_s_high")
        known = (found.value, found.low, found.high) if found else (None, None, None)
        assert tuple(float(row[name]) if row[name] else None for name in names) == known


def test_ratios_are_those_of_the_analysis(folder: Path, analysis: Analysis) -> None:
    rows = [r for r in numbers(folder, "improvement_heatmap") if "again" not in r["candidate"]]
    assert len(rows) == 3 * 4
    for row in rows:
        names = (row["pair"], row["load"], row["candidate"], row["reference"])
        found = analysis.comparison(*names)
        assert row["verdict"] == found.verdict
        known = "" if found.ratio is None else repr(found.ratio.low)
        assert row["ratio_low"] == known


@pytest.mark.slow
def test_the_same_results_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    build_report(folder, tmp_path)
    made = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert {path.suffix for path in made} == {".csv", ".md", ".html", ".png", ".svg"}
    for path in made:
        assert path.read_bytes() == (folder / path.relative_to(tmp_path)).read_bytes(), path.name


def test_a_run_that_was_cut_off_says_so(tmp_path: Path) -> None:
    make_results(
        tmp_path, lasting=1, ended=False, candidates=("pd",), concurrencies=(1,), tokens=16
    )
    done = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "This run is unfinished" in text
    assert "unfinished</title>" in text
    assert "pdv-bench legacy --output DIR" in text
    assert "pdv-bench concurrent --output DIR" in text
    assert not (tmp_path / "plots" / "legacy_and_honest.svg").exists()


@pytest.mark.parametrize("what", ["nothing", "another schema", "no cells"])
def test_a_folder_without_results_is_one_sentence(tmp_path: Path, what: str) -> None:
    if what == "another schema":
        (tmp_path / "run.json").write_text(json.dumps({"schema_version": 1}), encoding="utf-8")
    if what == "no cells":
        make_results(tmp_path, lasting=0)
        (tmp_path / "cells.jsonl").unlink()
    done = CliRunner().invoke(main, ["report", str(tmp_path), "--output", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert re.fullmatch(r"Error: [^\n]+\n", done.stderr)
    assert str(tmp_path) in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_one_sentence(tmp_path: Path) -> None:
    Truth(concurrencies=(1,), blocks=1, tokens=16).write(tmp_path)
    (tmp_path / "plots").write_text("", encoding="utf-8")
    done = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert done.exit_code == 2
    assert re.fullmatch(r"Error: [^\n]*plots[^\n]*\n", done.stderr)
