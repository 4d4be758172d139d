"""The most tokens/s that the machine could reach in a cell: :func:`bound_of`."""

from __future__ import annotations

from bench.report.summaries import CellSummary
from bench.results.records import Run
from bench.roofline import CellWork, cell_bound
from bench.roofline.recorded import Recorded, recorded_in


class Bounds:
    """Of the cells of one run. Without the machine's rates there are none."""

    def __init__(self, run: Run) -> None:
        self.recorded: Recorded | None = recorded_in(run.environment)
        self._batches = {
            (one.pair, one.candidate): one.options.get("scheduling", {}).get("max_num_seqs")
            for one in run.configurations
        }

    def of(self, cell: CellSummary) -> float | None:
        """Output tokens/s, prefill included, of one batch as large as the load and the server's
        limit allow, with the draft lengths and the tokens per cycle that were measured. None for a
        load that is no closed loop."""
        costs = None if self.recorded is None else self.recorded.pairs.get(cell.pair)
        concurrency, tokens = cell.shape.concurrency, cell.mean_tokens
        if self.recorded is None or costs is None or concurrency is None or tokens is None:
            return None
        batch = min(concurrency, self._batches.get((cell.pair, cell.candidate)) or concurrency)
        work = CellWork(batch, tokens[0], tokens[1], *cell.speculation.per_pass)
        return cell_bound(self.recorded.rates, costs.verifier, costs.draft, work)
