"""The laboratory's page: ``emulated.md``, its tables as CSV and its pictures."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.emulation import figures
from bench.emulation.findings import (
    Rows,
    device_rows,
    host_rows,
    law_rows,
    residual,
    validation_rows,
    waits,
)
from bench.emulation.records import Trial, TrialFolder
from bench.emulation.studies import BASE, host_costs
from bench.emulation.valley import Place, caveats, clients, places, valleys
from bench.report.figures.picture import Picture
from bench.report.figures.style import settings
from pdv_mp.emulation.cost_table import read_cost_table
from pdv_mp.emulation.device_name import table_path

PAGE = "emulated.md"

_TITLES = {
    frozenset({"host"}): "What the host takes, with emulated devices",
    frozenset({"host", "validation"}): "Emulated devices beside real ones",
}
"""By the studies that a page is of; of all others it is about emulated devices."""

_HEAD = """\
**Everything here is emulated**, but for what is called measured: the models' steps take the time
that a cost table says, and compute nothing. Processes, messages, scheduling and accounts are real,
on the machine that made this page.

The law, written down before each measurement (predictions.json):

    T(C) = g [k T_d(C/g) + T_v(C/g, k+1) + s(C/g)] + sum over edges of m (h0 + h1 C/g)
    rate = C E(a, k) / (T(C) + P(C)),  E(a, k) = (1 - a^(k+1)) / (1 - a)

C clients, g groups, k draft tokens, T_d and T_v steps of draft and verifier, s what the host does
in a cycle, m messages that a cycle waits for, a the acceptance, P what prompts take per cycle.
"""

_SINGLE = "One window each, so there are no intervals."


def write_report(folder: TrialFolder) -> Path:
    """Make the page and all that it shows from the trials; returns its path. Raises OSError, and
    ResultsError if there is nothing to report on."""
    header, trials, predictions = folder.header(), folder.trials(), folder.predictions()
    acceptance = read_cost_table(table_path(BASE)).acceptance
    law = law_rows(trials, predictions)
    title = _TITLES.get(frozenset(trial.study for trial in trials), "Emulated devices")
    parts = [f"# {title}", _HEAD, f"Made {header.get('started', '')}, {_machine(header)}."]
    pictures: list[Picture | None] = []
    with settings():
        parts += _waits(trials) + _host(trials, acceptance, pictures)
        parts += _validation(validation_rows(trials), pictures)
        parts += _valley(places(trials, predictions), pictures)
        parts += _delays(law, pictures)
        parts += _devices(device_rows(law), pictures)
        parts += _law(law, pictures)
        drawn = [picture.write(folder.path) for picture in pictures if picture is not None]
    for each in drawn:
        parts.append(f"![{each.picture.alt}]({each.picture.name}.png)")
    failed = [trial for trial in trials if trial.failed is not None]
    if failed:
        parts.append("## Failed\n\n" + "\n".join(f"- {t.id}: {t.failed}" for t in failed))
    path = folder.path / PAGE
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    write_rows(folder.path / "law.csv", law)
    return path


def _machine(header: dict[str, Any]) -> str:
    machine = header.get("machine", {})
    return f"on {machine.get('cpu', 'an unknown CPU')}, {machine.get('cores', '?')} cores"


def _waits(trials: Sequence[Trial]) -> list[str]:
    found = waits(trials)
    if found is None:
        return []
    return [
        f"Half of the emulated waits ended within {found[0]:.1f} µs after their moment, and 99 % "
        f"within {found[1]:.1f} µs (medians over the trials)."
    ]


def _host(trials: Sequence[Trial], acceptance: float, pictures: list[Picture | None]) -> list[str]:
    host = host_costs(trials, acceptance)
    if host is None:
        return []
    rows = host_rows(trials, acceptance, host)
    alone = [row for row in rows if row["setup"] == "unified"]
    title = (
        f"Emulated: what the host does in a cycle of unified takes {host.s0 / 1000:.2g} ms and "
        f"{host.s1:.0f} µs for each request, up to {alone[-1]['concurrency']}"
    )
    pictures.append(
        figures.lines_picture(
            "emulated_host",
            title,
            rows,
            "setup",
            "concurrency",
            ("clients at a time (concurrency)", "µs of a cycle besides its steps"),
            "us",
            dashed="the law's costs, fitted to unified and pdv",
        )
    )
    table = markdown(
        ("topology", "C", "blocks", "cycle, µs", "least to most", "by the law's costs, µs"),
        [
            (
                row["setup"],
                row["concurrency"],
                row["blocks"],
                f"{row['found']:.0f}",
                f"{row['least']:.0f} to {row['most']:.0f}",
                f"{row['expected']:.0f}",
            )
            for row in rows
        ],
    )
    return [
        "## What the host takes\n\nFrom servers whose steps take 1 µs, medians over blocks. A "
        f"cycle of n requests takes s(n) = {host.s0:.1f} + {host.s1:.1f} n µs besides its steps, "
        f"and a message that it waits for {host.h0:.1f} + {host.h1:.1f} n µs.",
        table,
    ]


def _validation(rows: Rows, pictures: list[Picture | None]) -> list[str]:
    if not rows:
        return []
    pictures.append(figures.validation_picture(rows))
    table = markdown(
        (
            *("topology", "C", "blocks", "emulated", "measured", "emulated ÷ measured"),
            *("tokens/cycle emulated", "tokens/cycle measured", "cycles/s emulated ÷ measured"),
        ),
        [
            (
                row["setup"],
                row["concurrency"],
                row["blocks"],
                f"{row['emulated']:.0f}",
                f"{row['measured']:.0f}",
                _interval(row["ratio"], row["low"], row["high"]),
                f"{row['emulated_tokens']:.2f}",
                f"{row['measured_tokens']:.2f}",
                f"{row['cycles']:.3f}",
            )
            for row in rows
        ],
    )
    return ["## Is the emulation right?\n\nOutput tokens/s:\n\n" + table]


def _interval(ratio: float, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"{ratio:.3f}"
    return f"{ratio:.3f} ({low:.3f}–{high:.3f})"


def _valley(found: Sequence[Place], pictures: list[Picture | None]) -> list[str]:
    if not found:
        return []
    each = valleys(found)
    pictures += [figures.valley_map(valley) for valley in each]
    table = markdown(
        ("topology", "step, ms", "C", "windows", "expected", "found", "shown", "found ÷ expected"),
        [
            (
                place.setup,
                f"{place.step_ms:g}",
                place.concurrency,
                place.blocks,
                f"{place.expected:.3f}",
                _interval(place.found, place.low, place.high),
                "" if place.verdict == "one window" else place.verdict,
                f"{place.residual:+.1%}",
            )
            for place in found
        ],
    )
    return [
        "## Where handoffs make a valley\n\nA handoff takes about the same time whatever the "
        "models are. So it costs much where steps are short, and little where they are long; and "
        "since its fixed part is shared by all requests of a batch, and its other part is not, "
        "what it costs also depends on how many are served at a time.",
        *caveats(found),
        "\n".join(f"- {valley.words}" for valley in each),
        "Shares of unified's output tokens/s, with intervals:\n\n" + table,
    ]


def _delays(law: Rows, pictures: list[Picture | None]) -> list[str]:
    rows = [row for row in law if row["study"] == "delay"]
    if not rows:
        return []
    longest = max(row["delay_us"] for row in rows)
    few = min(row["concurrency"] for row in rows)
    of = {row["delay_us"]: row["found"] for row in rows if row["concurrency"] == few}
    lost = "" if 0 not in of or longest not in of else f"{1 - of[longest] / of[0]:.0%}"
    title = (
        f"Emulated: {longest:g} µs more for each message cost pdv {lost} of its rate with "
        f"{clients(few)} at a time"
    )
    pictures.append(
        figures.lines_picture(
            "emulated_delays",
            title,
            rows,
            "concurrency",
            "delay_us",
            ("delay of each of a cycle's two messages, µs", "output tokens/s"),
            "rate",
        )
    )
    return [
        f"## Delayed messages\n\n{_SINGLE}\n\n"
        + markdown(
            ("delay, µs", "C", "expected, tokens/s", "found, tokens/s", "residual"),
            [
                (
                    f"{r['delay_us']:g}",
                    r["concurrency"],
                    f"{r['expected']:.0f}",
                    f"{r['found']:.0f}",
                    f"{r['residual']:+.1%}",
                )
                for r in rows
            ],
        )
    ]


def _devices(rows: Rows, pictures: list[Picture | None]) -> list[str]:
    if not rows:
        return []
    ahead = [row for row in rows if row["found"] > 1]
    title = (
        f"Emulated: a draft device is ahead of two replicas in {len(ahead)} of {len(rows)} cases"
        + (f", up to {clients(max(row['concurrency'] for row in ahead))}" if ahead else "")
    )
    pictures.append(
        figures.lines_picture(
            "emulated_devices",
            title,
            rows,
            "pair",
            "concurrency",
            ("clients at a time (concurrency)", "draft device ÷ two replicas"),
            "ratio",
        )
    )
    return [
        "## Two devices: one that drafts, or two replicas\n\nEach with the draft length that the "
        f"law thinks best; above 1 the draft device is ahead. {_SINGLE}\n\n"
        + markdown(
            ("pair and way", "C", "k", "k of replicas", "expected", "found"),
            [
                (
                    r["pair"],
                    r["concurrency"],
                    r["k_draft_device"],
                    r["k_replicas"],
                    f"{r['expected']:.3f}",
                    f"{r['found']:.3f}",
                )
                for r in rows
            ],
        )
    ]


def _law(law: Rows, pictures: list[Picture | None]) -> list[str]:
    off = residual(law)
    if off is None:
        return []
    pictures.append(figures.law_picture(law))
    parts = []
    for study in dict.fromkeys(row["study"] for row in law):
        mine = [row for row in law if row["study"] == study]
        worst = max(mine, key=lambda row: abs(row["residual"]))
        parts.append(
            f"- {study}: half of {len(mine)} rates within {residual(mine):.1%}; the farthest, "
            f"{worst['residual']:+.0%}, is {worst['setup']} with {clients(worst['concurrency'])} "
            f"({worst['table']})"
        )
    return ["## How far the law is off\n\n" + "\n".join(parts)]


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def write_rows(path: Path, rows: Rows) -> None:
    """Rows as CSV, with ``kind`` emulated in each."""
    if not rows:
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["kind", *rows[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"kind": "emulated", **row} for row in rows)
