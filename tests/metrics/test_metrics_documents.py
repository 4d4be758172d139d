"""docs/metrics.md and docs/grafana.json say what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pdv_mp.metrics.catalogue import METRICS, Metric
from pdv_mp.metrics.dashboard import ROWS, dashboard
from pdv_mp.metrics.page import page

DOCS = Path(__file__).resolve().parents[2] / "docs"
GRAFANA = json.loads((DOCS / "grafana.json").read_text(encoding="utf-8"))

NAME = re.compile(r"(?:vllm:|pdv_)[a-z0-9_]+")
_HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")


def shown_names() -> dict[str, Metric]:
    """Every name that a scrape can have, and its metric."""
    found = {}
    for metric in METRICS:
        parts = _HISTOGRAM_PARTS if metric.kind == "histogram" else ("",)
        found.update({metric.shown_name + part: metric for part in parts})
    return found


def expressions() -> list[tuple[str, str, str]]:
    """Title, legend and expression of all that the dashboard shows."""
    return [
        (panel["title"], target["legendFormat"], target["expr"])
        for panel in GRAFANA["panels"]
        for target in panel.get("targets", ())
    ]


def test_the_page_is_current() -> None:
    assert (DOCS / "metrics.md").read_text(encoding="utf-8") == page()


def test_the_dashboard_is_current() -> None:
    assert dashboard() == GRAFANA


def test_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for panel in GRAFANA["panels"]
        for place in (panel["gridPos"],)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    ids = [panel["id"] for panel in GRAFANA["panels"]]
    assert len(ids) == len(set(ids)) == len(ROWS) + sum(map(len, ROWS.values()))


@pytest.mark.parametrize(("title", "legend", "expression"), expressions())
def test_an_expression_names_what_exists(title: str, legend: str, expression: str) -> None:
    names = NAME.findall(expression)
    assert names
    shown = shown_names()
    for name in names:
        assert name in shown, f"{title}: {name}"
        if shown[name].kind == "counter" or name.endswith(_HISTOGRAM_PARTS):
            assert re.search(rf"(?:rate|increase)\({name}[\[{{]", expression), f"{title}: {name}"
        else:
            assert f"rate({name}" not in expression, f"{title}: {name} is no counter"
    for opening, closing in ("()", "[]", "{}"):
        assert expression.count(opening) == expression.count(closing), title
    labels = {label for name in names for label in shown[name].labels}
    used = set(re.findall(r"{{(\w+)}}", legend))
    for group in re.findall(r"by \(([^)]*)\)", expression):
        used |= {label.strip() for label in group.split(",") if label.strip()}
    assert used <= labels | {"le"}, f"{title}: {used - labels}"
