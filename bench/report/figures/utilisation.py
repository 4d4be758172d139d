"""How busy the GPU is, where there is one, else the processor; and which process uses it."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from bench.report.figures import findings
from bench.report.figures.picture import Picture
from bench.report.figures.series import COLUMNS, draw_lines, name_lines, panels, place
from bench.report.figures.style import LEGEND_COLUMNS, legend_below, new_figure, say_beside
from bench.report.figures.view import View
from bench.report.summaries import CellSummary, Estimate

_SHADES = (
    *("#2b2b2b", "#6d8196", "#b8860b", "#7a4b3a", "#a9b665", "#5b4e8c", "#c7c7c7", "#8f3f57"),
    *("#1f7a7a", "#e0a072", "#3d5a2b", "#9d9de0"),
)


def draw(view: View) -> Picture:
    """A row for each pair: busy against concurrency, and cores by process."""
    has_gpu = bool(view.counted(gpu))
    value = gpu if has_gpu else cores
    title = finding(view, has_gpu)
    processes = _processes(view)
    legend_rows = -(-len(processes) // LEGEND_COLUMNS)
    height = 0.8 + 0.24 * legend_rows + 3.2 * len(view.pairs)
    figure = new_figure(title, view.footer, height, legend_rows)
    named = []
    for row, pair in zip(panels(figure, len(view.pairs), 2), view.pairs, strict=True):
        of = f", {pair}" if len(view.pairs) > 1 else ""
        named.append((row[0], draw_lines(row[0], view, pair, value)))
        if has_gpu:
            row[0].set_ylim(0, 1)
            row[0].yaxis.set_major_formatter(PercentFormatter(1.0))
            row[0].set_ylabel("GPU utilisation")
        else:
            row[0].set_ylim(bottom=0)
            row[0].set_ylabel("CPU cores in use by the server")
        row[0].set_title(f"{'GPU' if has_gpu else 'all processes of the server'}{of}", loc="left")
        _by_process(row[1], view, pair, processes)
        row[1].set_title(f"CPU cores by process, C = {view.concurrencies[-1]}{of}", loc="left")
    legend_below(figure, view.footer, *_legend(figure.axes))
    name_lines(figure, named)
    cells = [
        cell
        for pair in view.pairs
        for candidate in view.candidates
        for _, cell in view.cells(pair, candidate)
    ]
    return Picture(
        name="gpu_utilization",
        title=title,
        alt=(
            f"Left: lines of {'GPU utilisation' if has_gpu else 'CPU cores in use by the server'} "
            "against the number of clients at a time, one for each of "
            f"{findings.listed(view.candidates)}. Right: bars of the CPU cores that each process "
            f"used at C = {view.concurrencies[-1]}, the clients' own included. {title}."
        ),
        caption=(
            "Means over the windows of all blocks that count. The clients run on the same machine "
            "as the server; what they take is shown beside it. A process that polls looks busy "
            "and is not, and a busy one need not do useful work: see where the time goes."
            + ("" if has_gpu else " There was no GPU that could be asked for its utilisation.")
        ),
        columns=(
            *COLUMNS,
            "blocks",
            "server_cores",
            "gpu_utilisation",
            "gpu_memory_bytes",
            *(f"cores_{name}" for name in processes),
        ),
        rows=[
            (
                *place(cell),
                cell.blocks,
                cell.server_cores,
                (found := gpu(cell)) and found.value,
                max((g.memory_bytes for g in cell.gpus), default=None),
                *(cell.uses[name].cores if name in cell.uses else None for name in processes),
            )
            for cell in cells
        ],
        figure=figure,
    )


def gpu(cell: CellSummary) -> Estimate | None:
    """Mean utilisation of the GPUs that the server could use."""
    if not cell.gpus:
        return None
    mean = sum(found.utilisation for found in cell.gpus) / len(cell.gpus)
    return Estimate(mean, None, None, cell.blocks)


def cores(cell: CellSummary) -> Estimate | None:
    """Cores that the server's processes used together."""
    if cell.server_cores is None:
        return None
    return Estimate(cell.server_cores, None, None, cell.blocks)


def finding(view: View, has_gpu: bool) -> str:
    """From how little to how much is in use."""
    value = gpu if has_gpu else cores
    counted = view.counted(value)
    if not counted:
        return "No use of the processor was recorded"
    found = {findings.where(view, cell): e.value for cell in counted if (e := value(cell))}
    low, high = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
    same = f"{found[low]:.2f}" == f"{found[high]:.2f}"
    if has_gpu and same:
        return f"The GPU is busy {found[low]:.0%} of the time, in every cell"
    if has_gpu:
        return f"The GPU is busy from {found[low]:.0%} ({low}) to {found[high]:.0%} ({high})"
    usable = (view.analysis.run.environment.get("machine") or {}).get("usable")
    of = f" of {usable}" if usable else ""
    if same:
        return f"No GPU: the server keeps {found[low]:.2f}{of} CPU cores busy, in every cell"
    return (
        f"No GPU: the server keeps {found[low]:.2f} ({low}) to {found[high]:.2f} ({high}){of} CPU "
        "cores busy"
    )


def _processes(view: View) -> list[str]:
    """Names of all processes, the clients' last."""
    names = sorted({name for cell in view.analysis.cells for name in cell.uses})
    return sorted(names, key=lambda name: name == "clients")


def _by_process(axes: Axes, view: View, pair: str, processes: Sequence[str]) -> None:
    load = view.closed[-1].name
    cells = [view.analysis.cell(pair, name, load) for name in view.candidates]
    starts = [0.0] * len(cells)
    for turn, process in enumerate(processes):
        used = [cell.uses[process].cores if process in cell.uses else 0.0 for cell in cells]
        theirs = process == "clients"
        axes.barh(
            range(len(cells)),
            used,
            0.62,
            starts,
            label=process,
            linewidth=0.6,
            color="white" if theirs else _SHADES[turn % len(_SHADES)],
            hatch="////" if theirs else None,
            edgecolor="#8a8a8a" if theirs else "white",
        )
        starts = [start + part for start, part in zip(starts, used, strict=True)]
    for y, (cell, total) in enumerate(zip(cells, starts, strict=True)):
        text = f"{total:.2f}" if cell.uses else "failed" if cell.problems else "not measured"
        say_beside(axes, total, y, text)
    axes.set_yticks(range(len(cells)), view.candidates)
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.set_xlim(0, 1.15 * max([*starts, 0.01]))
    axes.set_xlabel("CPU cores")
    axes.grid(visible=False, axis="y")


def _legend(every: Sequence[Axes]) -> tuple[list[object], list[str]]:
    found: dict[str, object] = {}
    for axes in every:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)
