"""The page's sections of results."""

from __future__ import annotations

from collections.abc import Mapping

from bench.report.figures.every import OF_THE_SOURCES
from bench.report.figures.picture import Drawn
from bench.report.figures.style import WIDTH
from bench.report.modes import failure_modes, success_modes
from bench.report.page_blocks import (
    Block,
    Figure,
    Heading,
    Paragraph,
    Section,
    Table,
    foldable,
)
from bench.report.page_text import estimate_text, load_named, ratio_text, share_text
from bench.report.recommendation import load_text
from bench.report.summaries import Analysis, Comparison
from bench.roofline.recorded import recorded_in
from bench.statistics import Quantile

PICTURES = "plots"
"""The folder of the pictures' files, beside the page."""

Drawings = Mapping[str, Drawn]


def five_pictures(analysis: Analysis, drawings: Drawings) -> Section:
    """The sources' pictures, and the loads that have no place in them."""
    blocks: list[Block] = []
    names = {
        "throughput_comparison": "Throughput",
        "latency_comparison": "Latency",
        "gpu_utilization": "Use of GPU and processor",
        "acceptance_rate": "Acceptance",
        "improvement_heatmap": "All comparisons",
    }
    for name in OF_THE_SOURCES:
        if name in drawings:
            blocks += [Heading(names[name]), figure(drawings[name])]
    blocks += _share_of_bound(analysis)
    if "pareto" in drawings:
        blocks += [Heading("One user's speed against all users'"), figure(drawings["pareto"])]
    missing = [names[name].lower() for name in OF_THE_SOURCES if name not in drawings]
    if missing:
        blocks.append(
            Paragraph(
                f"Left out: {', '.join(missing)}. An axis of concurrency needs a closed loop, and "
                "a comparison needs two candidates.",
                "note",
            )
        )
    blocks += _other_loads(analysis)
    return Section("pictures", "Throughput, latency, utilisation, acceptance", blocks)


def _share_of_bound(analysis: Analysis) -> list[Block]:
    title = Heading("Measured and possible")
    recorded = recorded_in(analysis.run.environment)
    cells = [cell for cell in analysis.cells if cell.shape.kind == "closed"]
    if recorded is None or not any(cell.bound for cell in cells):
        why = (
            "These results do not hold the machine's rates."
            if recorded is None
            else "There is no closed loop of models whose shapes are known."
        )
        return [title, Paragraph(f"Measured ÷ bound: not measured. {why}", "note")]
    how = "measured before this run" if recorded.measured else "what such a device reaches"
    return [
        title,
        Paragraph(
            f"The bound is what {recorded.device} allows for the work of a cell in one batch: "
            f"{recorded.bandwidth / 1e9:,.1f} GB/s and {recorded.flops / 1e9:,.0f} GFLOP/s, {how}; "
            "weights and KV cache read once per step, drafts and tokens per cycle as they were. "
            "Norms, sampling and everything between steps are free in it."
        ),
        foldable(
            "Tokens/s, measured and possible, of each cell",
            "Measured ÷ bound",
            ["load", "pair", "candidate", "output tokens/s", "bound", "measured ÷ bound"],
            [
                (
                    load_text(cell.shape),
                    cell.pair,
                    cell.candidate,
                    estimate_text(cell.throughput),
                    "not measured" if cell.bound is None else f"{cell.bound:.0f}",
                    "not measured" if cell.share_of_bound is None else f"{cell.share_of_bound:.2f}",
                )
                for cell in cells
            ],
        ),
    ]


def _other_loads(analysis: Analysis) -> list[Block]:
    cells = [cell for cell in analysis.cells if cell.shape.kind != "closed"]
    if not cells:
        return []
    return [
        Heading("Loads that are not closed loops"),
        Paragraph(
            "Here requests come at times of their own, however many are open; they have no place "
            "on an axis of concurrency. The comparison above has them as columns. Latencies are "
            "counted from the scheduled arrival."
        ),
        Table(
            "Cells of open loops and traces",
            [
                "load",
                "pair",
                "candidate",
                "blocks",
                "output tokens/s",
                "requests/s",
                "mean TTFT, ms",
                "P99 TTFT, ms",
                "mean end to end, ms",
                "P99 end to end, ms",
                "unfinished",
            ],
            [
                (
                    load_text(cell.shape),
                    cell.pair,
                    cell.candidate,
                    cell.blocks,
                    estimate_text(cell.throughput),
                    estimate_text(cell.requests_per_s),
                    estimate_text(cell.ttft.mean),
                    _tail(cell.ttft.p99, cell.blocks),
                    estimate_text(cell.e2e.mean),
                    _tail(cell.e2e.p99, cell.blocks),
                    cell.e2e.unfinished,
                )
                for cell in cells
            ],
        ),
    ]


def _tail(found: Quantile | None, blocks: int) -> str:
    return "n too small" if found is None and blocks else estimate_text(found)


def figure(drawn: Drawn) -> Figure:
    """A picture with its numbers folded below it."""
    picture = drawn.picture
    return Figure(
        picture.name,
        drawn.url,
        picture.alt,
        picture.caption,
        round(WIDTH * 100),
        round(picture.figure.get_figheight() * 100),
        PICTURES,
        Table(
            f"The numbers of the picture {picture.name}",
            [column.replace("_", " ") for column in picture.columns],
            picture.rows,
            folded="Its numbers as a table",
        ),
    )


def time(analysis: Analysis, drawings: Drawings) -> Section:
    """Timelines."""
    names = [name for name in ("token_time", "orchestration_share") if name in drawings]
    blocks: list[Block] = [figure(drawings[name]) for name in names]
    if not blocks:
        blocks.append(
            Paragraph(
                "No timelines were recorded: the warm-up block of a sweep carries them, and none "
                "of its cells counts.",
                "note",
            )
        )
    return Section("time", "Where a token's time goes", blocks)


def valley(analysis: Analysis) -> Section:
    """Whether there is one."""
    blocks: list[Block] = [
        Paragraph(
            "The sources speak of an “overhead valley”: a handoff's cost that shows at 6 to 16 "
            "requests at a time and neither below nor above. There is one only if the throughput "
            "ratio there lies below that at 1 to 4 clients and below that at 32 or more, with "
            "intervals that hold at once. A topology that loses everywhere has none."
        )
    ]
    if not analysis.valleys:
        blocks.append(Paragraph("There is nothing to compare.", "note"))
        return Section("valley", "Is there a valley", blocks)
    blocks += [
        foldable(
            "The verdict for each two candidates",
            "Has the first candidate a valley against the second?",
            ["candidate", "against", "pair", "verdict", "why"],
            [
                (found.candidate, found.reference, found.pair, found.verdict, _sentence(found.text))
                for found in analysis.valleys
            ],
        ),
        Table(
            "Throughput ratios and orchestration shares by number of clients",
            [
                "candidate",
                "against",
                "pair",
                "clients",
                "ratio of tokens/s",
                "its orchestration share",
                "the other's",
            ],
            [
                (
                    found.candidate,
                    found.reference,
                    found.pair,
                    point.concurrency,
                    ratio_text(point.ratio),
                    share_text(point.orchestration_share),
                    share_text(point.orchestration_share_reference),
                )
                for found in analysis.valleys
                for point in found.points
            ],
            folded="The map as a table",
        ),
    ]
    return Section("valley", "Is there a valley", blocks)


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def modes(analysis: Analysis) -> Section:
    """Where a candidate beats the reference, and where it loses to it."""
    reference = analysis.run.reference
    blocks: list[Block] = []
    ahead, behind = success_modes(analysis), failure_modes(analysis)
    for title, what, found in (
        ("Success modes", "ahead of", ahead),
        ("Failure modes", "behind", behind),
    ):
        blocks.append(Heading(title))
        if not found:
            blocks.append(
                Paragraph(f"Under no load is a candidate shown to be {what} {reference}.")
            )
            continue
        blocks.append(
            foldable(
                f"All that is shown to be {what} {reference}",
                f"Shown to be {what} {reference}",
                ["load", "pair", "candidate", f"times {reference}'s tokens/s", "blocks", "cause"],
                [_mode(analysis, comparison) for comparison in found],
            )
        )
    if ahead or behind:
        blocks.append(
            Paragraph(
                "Cause: the group of states whose time per token changed most, from the timelines "
                "of the warm-up block. It says where the time went, not that nothing else changed.",
                "note",
            )
        )
    return Section("modes", f"Success and failure modes against {reference}", blocks)


def _mode(analysis: Analysis, found: Comparison) -> tuple[object, ...]:
    return (
        load_named(analysis.run, found.load),
        found.pair,
        found.candidate,
        ratio_text(found.ratio),
        found.blocks,
        found.cause and found.cause.text,
    )
