"""The folder that a sweep writes while it runs and a report reads afterwards.

``run.json``, ``cells.jsonl``, ``requests/<cell>.jsonl`` and ``end.json``. The requests of a cell
are written, and moved into place, before its line is appended; so a cell whose line is there is
whole, and a run that was cut off, by a signal, a crash or a full disk, is taken up after the last
whole line. Nothing is ever rewritten but a last line that was cut off.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from bench.results.records import SCHEMA_VERSION, CellRecord, End, RequestRecord, Run

RUN, CELLS, REQUESTS, END = "run.json", "cells.jsonl", "requests", "end.json"

_Record = TypeVar("_Record")


class ResultsError(RuntimeError):
    """A folder of results cannot be read or written; the message says what is wrong and where."""


class _Version(msgspec.Struct):
    schema_version: int | None = None


class ResultsFolder:
    """The records in one folder. Methods raise ResultsError.

    A folder has one writer at a time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / RUN).exists()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Makes the folder if need be, and keeps other writers away as long as it is entered."""
        with _named(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.path, os.O_RDONLY)
        try:
            with _named(self.path):
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise ResultsError(
                        f"{self.path}: another run is writing here; wait for it, or choose another "
                        "folder"
                    ) from error
            yield
        finally:
            os.close(folder)

    def begin(self, run: Run) -> None:
        """Makes the folder of a new run. The raw records of an earlier run are deleted; files that
        look like some, without one, are left and refused."""
        requests, cells = self.path / REQUESTS, self.path / CELLS
        with _named(self.path):
            if self.exists:
                # In this order, whatever is left when this is cut off is a run, with fewer cells.
                for path in (self.path / END, cells):
                    path.unlink(missing_ok=True)
                if requests.exists():
                    shutil.rmtree(requests)
            elif cells.exists() or (requests.exists() and any(requests.iterdir())):
                raise ResultsError(
                    f"{self.path} has {CELLS} or {REQUESTS}/ but no {RUN}, so they are of no run; "
                    "choose another folder"
                )
            requests.mkdir(parents=True, exist_ok=True)
            _replace(self.path / RUN, msgspec.json.format(msgspec.json.encode(run)) + b"\n")

    def resume(self) -> list[CellRecord]:
        """The cells that are done. A last line that was cut off is taken away."""
        cells = self.path / CELLS
        with _named(cells):
            content = cells.read_bytes() if cells.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) != len(content):
                os.truncate(cells, len(whole))
        return self.cells()

    def keep(self, ids: Container[str]) -> None:
        """Forget all cells but these."""
        with _named(self.path):
            lines = [msgspec.json.encode(cell) + b"\n" for cell in self.cells() if cell.id in ids]
            _replace(self.path / CELLS, b"".join(lines))

    def add(self, cell: CellRecord, requests: Iterable[RequestRecord]) -> None:
        """A cell that is done, and its requests."""
        with _named(self.path):
            lines = b"".join(msgspec.json.encode(request) + b"\n" for request in requests)
            _replace(self.path / REQUESTS / f"{cell.id}.jsonl", lines)
            with (self.path / CELLS).open("ab") as file:
                file.write(msgspec.json.encode(cell) + b"\n")
                file.flush()
                os.fsync(file.fileno())

    def end(self, end: End) -> None:
        """Says why the run stopped."""
        with _named(self.path):
            _replace(self.path / END, msgspec.json.encode(end) + b"\n")

    def run(self) -> Run:
        """What was to be measured."""
        path = self.path / RUN
        if not path.exists():
            raise ResultsError(f"{self.path} holds no results: it has no {RUN}")
        return self._read(path, Run)

    def cells(self) -> list[CellRecord]:
        """The cells so far, in the order in which they were measured; a line without an end was
        cut off and is not one."""
        path = self.path / CELLS
        return list(_lines(path, CellRecord)) if path.exists() else []

    def requests(self, cell: CellRecord) -> list[RequestRecord]:
        """The requests of a cell, in the order in which they were sent."""
        return list(_lines(self.path / REQUESTS / f"{cell.id}.jsonl", RequestRecord))

    def stopped(self) -> End | None:
        """Why the run stopped; None if it is running or was cut off."""
        path = self.path / END
        return self._read(path, End) if path.exists() else None

    def _read(self, path: Path, kind: type[_Record]) -> _Record:
        with _named(path):
            content = path.read_bytes()
        return _decode(content, kind, str(path))


def _lines(path: Path, kind: type[_Record]) -> Iterator[_Record]:
    with _named(path):
        content = path.read_bytes()
    *lines, _cut_off = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        yield _decode(line, kind, f"{path}, line {number}")


def _decode(content: bytes, kind: type[_Record], where: str) -> _Record:
    try:
        version = msgspec.json.decode(content, type=_Version).schema_version
        if version not in (None, SCHEMA_VERSION):
            raise ResultsError(
                f"{where}: these results have schema version {version}, and this program reads "
                f"version {SCHEMA_VERSION}; choose another folder"
            )
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise ResultsError(f"{where}: {error}") from error


def _replace(path: Path, content: bytes) -> None:
    """Writes a file that is either there as a whole or not at all."""
    beside = path.with_name(f".{path.name}.new")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)  # on a full disk it would take what room there is
        raise


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """System errors as one sentence."""
    try:
        yield
    except OSError as error:
        raise ResultsError(f"{error.filename or path}: {error.strerror}") from error
