"""``bench.results.store``: what is whole is kept, whatever cuts a run off."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.results import store
from bench.results.records import (
    SCHEMA_VERSION,
    Candidate,
    CellRecord,
    End,
    Load,
    Objective,
    Pair,
    RequestRecord,
    Run,
)
from bench.results.store import ResultsError, ResultsFolder

RUN = Run(
    schema_version=SCHEMA_VERSION,
    started="2026-01-01T00:00:00+0000",
    command=["pdv-bench", "sweep"],
    seed=0,
    reference="one",
    candidates=[Candidate(name="one", topology="unified", options={"max_num_seqs": 8})],
    pairs=[Pair(name="shipped")],
    loads=[Load(name="C=1", kind="closed", concurrency=1)],
    blocks=8,
    window=1.0,
    ramp=0.5,
    budget=60.0,
    precision=None,
    workload={"source": "held-out"},
    objective=Objective(ttft_ms=500.0),
    environment={"versions": {}},
)


def cell(number: int) -> CellRecord:
    return CellRecord(
        schema_version=SCHEMA_VERSION,
        id=f"p0-b{number:04}-l0-c0",
        pair="shipped",
        candidate="one",
        load="C=1",
        block=number,
        order=0,
        followed=not number,
        started=RUN.started,
        window_ns=10**9,
    )


def request(prompt: int) -> RequestRecord:
    return RequestRecord(
        client=0,
        prompt=prompt,
        prompt_tokens=3,
        max_tokens=4,
        seed=7,
        arrival_ns=-5,
        sent_ns=-4,
        ended_ns=90,
        events=[(-1, 1), (80, 3)],
        ids=[5, 6, 7, 8],
        drafted=[0, 1, 1, 0],
        finish="length",
        usage={"completion_tokens": 4},
    )


@pytest.fixture
def folder(tmp_path: Path) -> ResultsFolder:
    found = ResultsFolder(tmp_path / "results")
    found.begin(RUN)
    return found


def test_what_is_written_is_read(folder: ResultsFolder) -> None:
    assert folder.exists
    assert folder.run() == RUN
    assert folder.cells() == []
    assert folder.stopped() is None
    requests = [[request(number) for number in range(count)] for count in (2, 0)]
    for number, of_cell in enumerate(requests):
        folder.add(cell(number), of_cell)
    assert folder.cells() == folder.resume() == [cell(0), cell(1)]
    assert [folder.requests(cell(number)) for number in (0, 1)] == requests
    end = End(schema_version=SCHEMA_VERSION, blocks=1, looked=False, alpha=0.05, stopped="done")
    folder.end(end)
    assert folder.stopped() == end
    assert {path.name for path in folder.path.iterdir()} == {
        *("run.json", "cells.jsonl", "requests", "end.json")
    }


def test_a_line_that_was_cut_off_is_no_cell(folder: ResultsFolder) -> None:
    folder.add(cell(0), [request(0)])
    lines = folder.path / store.CELLS
    whole = lines.read_bytes()
    lines.write_bytes(whole + msgspec.json.encode(cell(1))[:40])
    assert folder.cells() == [cell(0)]
    assert folder.resume() == [cell(0)]
    assert lines.read_bytes() == whole
    folder.add(cell(1), [])
    assert folder.cells() == [cell(0), cell(1)]


@pytest.mark.parametrize("fails_at", [0, 1])
def test_a_full_disk_is_said_and_costs_one_cell(
    folder: ResultsFolder, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    """The first file that is synchronised is that of the requests, the second that of the cells."""
    folder.add(cell(0), [request(0)])
    calls = iter(range(9))

    def fsync(fd: int) -> None:
        if next(calls) == fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(ResultsError, match=r"results.*: No space left on device$"):
            folder.add(cell(1), [request(1)])
    assert not list(folder.path.rglob(".*"))
    kept = folder.resume()
    assert cell(0) in kept
    assert all(len(folder.requests(one)) == 1 for one in kept)


def test_another_schema_is_refused(folder: ResultsFolder) -> None:
    path = folder.path / store.RUN
    path.write_bytes(path.read_bytes().replace(b'"schema_version": 2', b'"schema_version": 1'))
    with pytest.raises(ResultsError, match=r"run.json: .* version 1, .* reads version 2; choose"):
        folder.run()


def altered(**changes: Any) -> bytes:
    return msgspec.json.encode({**msgspec.to_builtins(cell(1)), **changes})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "line 2: "),
        (altered(block="x"), r"line 2: Expected `int`.*block"),
        (altered(blocks=1), r"line 2: .*unknown field `blocks`"),
        (altered(schema_version=3), "line 2: .*version 3"),
    ],
)
def test_a_malformed_line_is_named(folder: ResultsFolder, line: bytes, said: str) -> None:
    folder.add(cell(0), [])
    with (folder.path / store.CELLS).open("ab") as file:
        file.write(line + b"\n")
    for read in (folder.cells, folder.resume):
        with pytest.raises(ResultsError, match=said):
            read()


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    assert not folder.exists
    assert folder.cells() == []
    with pytest.raises(ResultsError, match=r"holds no results: it has no run\.json$"):
        folder.run()
    with pytest.raises(ResultsError, match=r"p0-b0000-l0-c0\.jsonl: No such file"):
        folder.requests(cell(0))


def test_a_folder_has_one_writer(folder: ResultsFolder) -> None:
    with folder.writing():
        other = ResultsFolder(folder.path)
        with pytest.raises(ResultsError, match="another run is writing here"), other.writing():
            pytest.fail("it was let in")
    with folder.writing():
        pass


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    folder = ResultsFolder(tmp_path / "file" / "results")
    with pytest.raises(ResultsError, match="Not a directory"), folder.writing():
        pytest.fail("it was let in")


def test_a_new_run_replaces_an_earlier_one(folder: ResultsFolder) -> None:
    folder.add(cell(0), [request(0)])
    folder.end(End(schema_version=2, blocks=0, looked=False, alpha=0.05, stopped="done"))
    other = folder.path / "notes.txt"
    other.write_text("mine", encoding="utf-8")
    folder.begin(msgspec.structs.replace(RUN, seed=1))
    assert folder.run().seed == 1
    assert folder.cells() == []
    assert folder.stopped() is None
    assert not list((folder.path / store.REQUESTS).iterdir())
    assert other.exists()


@pytest.mark.parametrize("name", ["cells.jsonl", "requests/mine.txt"])
def test_files_of_no_run_are_left(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(ResultsError, match=r"no run\.json, so they are of no run"):
        ResultsFolder(tmp_path).begin(RUN)
    assert file.read_text(encoding="utf-8") == "mine"
