"""What a sweep says while it runs, on stderr: a bar on a terminal, else a line for each block."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from bench.results.records import CellRecord, Run

_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} cells{postfix}"


class Display:
    """``bar``: whether there is one; None: if stderr is a terminal. Without one, ``lines`` says
    whether blocks are told. What fails is always told. A context manager."""

    def __init__(self, run: Run, *, bar: bool | None, lines: bool) -> None:
        self._run = run
        self._wanted = sys.stderr.isatty() if bar is None else bar
        self._lines = lines and not self._wanted
        self._total = len(run.pairs) * (run.blocks + 1) * len(run.loads) * len(run.candidates)
        self._bar: tqdm[Any] | None = None
        self._measured = self._told = 0
        self._left = 0.0
        self._began = time.monotonic()

    def known(self, cells: int) -> None:
        """So many cells were there already."""
        if self._wanted:
            self._bar = tqdm(
                total=self._total, initial=cells, file=sys.stderr, bar_format=_FORMAT, leave=True
            )

    def cell(self, cell: CellRecord, left: int, seconds: float) -> None:
        """A cell was measured; ``left`` cells and at most ``seconds`` are to come."""
        self._measured += 1
        self._left = seconds
        if cell.failed or cell.invalid:
            what = "failed" if cell.failed else "does not count"
            place = f"{cell.pair}, {cell.load}, {cell.candidate}, block {cell.block}"
            self._say(f"{place} {what}: {cell.failed or cell.invalid}")
        if self._bar is not None:
            self._bar.set_description_str(f"{cell.pair}, block {cell.block}", refresh=False)
            self._bar.set_postfix_str(f"at most {length(seconds)} left", refresh=False)
            self._bar.update()

    def block(self, pair: str, block: int) -> None:
        """All cells of a block are there."""
        if self._lines and self._measured > self._told:
            self._told = self._measured
            passed = length(time.monotonic() - self._began)
            self._say(
                f"{pair}: block {block} of {self._run.blocks} done after {passed}, at most "
                f"{length(self._left)} left"
            )

    def _say(self, line: str) -> None:
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()


def length(seconds: float) -> str:
    """A length of time for people: ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
