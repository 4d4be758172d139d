"""``claims.yaml`` has every figure of the documents, and none that they lack; errors name the
entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from bench.claims.reading import SOURCES, ClaimsError, Documents, read_claims
from bench.claims.records import Citation, Claims, Exclusion

LISTED = read_claims()


def test_every_line_with_a_digit_is_cited_or_excluded_and_every_figure_is_there() -> None:
    assert list(Documents(LISTED).problems()) == []


def test_all_documents_are_read_and_no_other_is_there() -> None:
    there = {path.name for path in SOURCES.glob("*.md")} - {"README.md"}
    assert there == set(LISTED.documents)


def without(claims: Claims, place: str) -> Claims:
    kept = []
    for claim in claims.claims:
        cited = [citation for citation in claim.cited if citation.at != place]
        if cited:
            kept.append(msgspec.structs.replace(claim, cited=cited))
    return msgspec.structs.replace(claims, claims=kept)


@pytest.mark.parametrize(
    "place",
    [
        "architecture_analysis.md:229",
        "concurrent_performance_results.md:35",
        "extended_analysis.md:17",
        "pdverify_readme.md:132",
        "presentation_script.md:351",
    ],
)
def test_a_claim_that_is_missing_is_noticed(place: str) -> None:
    (problem,) = Documents(without(LISTED, place)).problems()
    assert problem.startswith(f"{place} is neither cited nor excluded: ")


def changed(claims: Claims, place: str, figures: list[str]) -> Claims:
    found = []
    for claim in claims.claims:
        cited = [
            Citation(at=one.at, figures=figures) if one.at == place else one for one in claim.cited
        ]
        found.append(msgspec.structs.replace(claim, cited=cited))
    return msgspec.structs.replace(claims, claims=found)


def test_a_figure_of_a_cited_line_that_no_claim_has_is_noticed() -> None:
    place = "extended_analysis.md:68"
    (problem,) = Documents(changed(LISTED, place, ["5.19", "8.98"])).problems()
    assert problem.startswith(f"{place}: no claim has 73.0: ")


@pytest.mark.parametrize("figure", ["+51.9%", "2.5", "53"])
def test_a_figure_that_the_line_lacks_is_noticed(figure: str) -> None:
    place = "presentation_script.md:463"
    problems = list(Documents(changed(LISTED, place, ["~2-5%", figure])).problems())
    assert problems == [
        f"claim memory: {place} has no {figure}: "
        + Documents(LISTED).line("presentation_script.md", 463).strip()
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [("351", "is cited and excluded"), ("3", "is excluded and has no digit")],
)
def test_an_exclusion_for_nothing_is_noticed(line: str, said: str) -> None:
    entry = Exclusion(document="presentation_script.md", lines=line, why="a test")
    more = msgspec.structs.replace(LISTED, excluded=[*LISTED.excluded, entry])
    (problem,) = Documents(more).problems()
    assert said in problem


def first(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["claims"][0]
    return found


def wrong_kind(document: dict[str, Any]) -> None:
    first(document)["judge"]["kind"] = "guess"


def wrong_field(document: dict[str, Any]) -> None:
    first(document)["judge"]["concurency"] = [1]


def wrong_place(document: dict[str, Any]) -> None:
    first(document)["cited"][0]["at"] = "extended_analysis.md"


def no_figures(document: dict[str, Any]) -> None:
    first(document)["cited"][0]["figures"] = []


def twice(document: dict[str, Any]) -> None:
    document["claims"].append(first(document))


def stranger(document: dict[str, Any]) -> None:
    first(document)["cited"][0]["at"] = "another.md:1"


def unknown_pair(document: dict[str, Any]) -> None:
    first(document)["judge"]["pair"] = "llama-llama"


def upside_down(document: dict[str, Any]) -> None:
    first(document)["judge"]["ratio"] = [2, 1]


def open_range(document: dict[str, Any]) -> None:
    first(document)["judge"]["ratio"] = [None, None]


def bad_lines(document: dict[str, Any]) -> None:
    document["excluded"][0]["lines"] = "all"


def excluded_stranger(document: dict[str, Any]) -> None:
    document["excluded"][0]["document"] = "another.md"


def another_version(document: dict[str, Any]) -> None:
    document["schema_version"] = 2


def no_documents(document: dict[str, Any]) -> None:
    document["documents"] = 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (wrong_kind, r"claims, entry 1 \(tinyllama-128\): .*guess"),
        (wrong_field, r"claims, entry 1 \(tinyllama-128\): .*concurency"),
        (wrong_place, r"claims, entry 1 \(tinyllama-128\): .*cited\[0\].at"),
        (no_figures, r"claims, entry 1 \(tinyllama-128\): .*figures"),
        (twice, "claim tinyllama-128 is there twice"),
        (stranger, "claim tinyllama-128 cites another.md"),
        (unknown_pair, "claim tinyllama-128 is about the pair llama-llama"),
        (upside_down, "claim tinyllama-128 has the range 2.0 to 1.0"),
        (open_range, "claim tinyllama-128 has a range without ends"),
        (bad_lines, "excluded, entry 1: .*lines"),
        (excluded_stranger, "another.md are excluded"),
        (another_version, "schema version 2"),
        (no_documents, "documents"),
    ],
)
def test_errors_name_the_entry(change: Any, said: str, tmp_path: Path) -> None:
    whole = msgspec.to_builtins(LISTED)
    document = dict(whole)
    document["claims"], document["excluded"] = whole["claims"][:1], whole["excluded"][:1]
    change(document)
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(ClaimsError, match=said) as caught:
        read_claims(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("content", ["a: [", "- 1", "!!python/object:os.system x", ""])
def test_what_is_no_list_of_claims_is_one_sentence(content: str, tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ClaimsError) as caught:
        read_claims(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ClaimsError, match="No such file"):
        read_claims(tmp_path / "none.yaml")
