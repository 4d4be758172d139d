"""One cell by both metrics, from its raw requests."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bench.load.window import tokens_within
from bench.results.records import CellRecord, RequestRecord


class LegacyCell(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of ``legacy.csv``: one server in one block.

    ``admitted``: how many requests at once its admission lets in. ``completed``: requests that had
    all their tokens before the window's end; ``legacy_tokens_per_s``: their tokens / the window;
    ``honest_tokens_per_s``: all tokens that arrived in the window / the window.
    ``measured_overload``: tokens that were asked for over those that arrived in the window.
    ``failed``, ``invalid``: why the cell does not count.
    """

    pair: str
    block: int
    order: int
    candidate: str
    topology: str
    admission: str
    admitted: int
    window_s: float
    offered_requests: int
    offered_tokens: int
    completed: int
    cut_off: int
    refused: int
    errors: int
    legacy_tokens_per_s: float
    honest_tokens_per_s: float
    measured_overload: float | None
    failed: str | None
    invalid: str | None

    @property
    def counts(self) -> bool:
        """Whether it is used."""
        return self.failed is None and self.invalid is None


class Side(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a candidate is in the 2 x 2: ``topology``, as it was named, and ``admission``,
    ``bounded`` or ``unbounded``, of so many requests."""

    topology: str
    admission: str
    admitted: int


def count_cell(cell: CellRecord, side: Side, requests: Sequence[RequestRecord]) -> LegacyCell:
    """Both metrics of a cell."""
    seconds = cell.window_ns / 1e9
    done = [one for one in requests if is_completed(one, cell.window_ns)]
    honest = tokens_within(requests, cell.window_ns)
    offered = sum(one.max_tokens for one in requests)
    return LegacyCell(
        pair=cell.pair,
        block=cell.block,
        order=cell.order,
        candidate=cell.candidate,
        topology=side.topology,
        admission=side.admission,
        admitted=side.admitted,
        window_s=seconds,
        offered_requests=len(requests),
        offered_tokens=offered,
        completed=len(done),
        cut_off=cell.counts.cut_off,
        refused=cell.counts.refused,
        errors=cell.counts.failed,
        legacy_tokens_per_s=sum(len(one.ids) for one in done) / seconds,
        honest_tokens_per_s=honest / seconds,
        measured_overload=offered / honest if honest else None,
        failed=cell.failed,
        invalid=cell.invalid,
    )


def is_completed(request: RequestRecord, window_ns: int) -> bool:
    """Whether it had all its tokens before the window's end."""
    return (
        request.error is None
        and not request.cut_off
        and request.finish in ("length", "stop")
        and request.ended_ns < window_ns
    )
