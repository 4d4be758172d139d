"""``bench.load.punctuality``: what is asked of the scheduler is granted, and given back."""

from __future__ import annotations

import gc
import os
import platform
import threading

import pytest

from bench.load import punctuality
from bench.load.punctuality import SLICE_NS, punctual, slice_ns


def test_slices_are_short_within_and_as_before_afterwards() -> None:
    before, nice = slice_ns(), os.nice(0)
    with punctual():
        within = slice_ns()
        assert not gc.isenabled()
        assert os.nice(0) == nice
    assert gc.isenabled()
    assert slice_ns() == before
    if not before:
        pytest.skip(f"the scheduler of {platform.release()} grants no slices")
    assert within == SLICE_NS < before


def test_other_threads_keep_theirs() -> None:
    found: list[int | None] = []
    asked, ended = threading.Event(), threading.Event()

    def look() -> None:
        asked.wait(30)
        found.append(slice_ns())
        ended.set()

    thread = threading.Thread(target=look)
    before = slice_ns()
    thread.start()
    with punctual():
        asked.set()
        ended.wait(30)
    thread.join()
    assert found == [before]


def test_it_ends_with_an_error_too() -> None:
    before = slice_ns()
    with pytest.raises(RuntimeError, match="so it is"), punctual():
        raise RuntimeError("so it is")
    assert (slice_ns(), gc.isenabled()) == (before, True)


def test_elsewhere_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(punctuality, "_CALLS", {})
    assert slice_ns() is None
    with punctual():
        assert not gc.isenabled()
    assert gc.isenabled()
