"""What the laboratory measured, a line for each trial, in a folder of its own kind.

``laboratory.json`` says that the folder holds emulated results and on what machine they were made;
``trials.jsonl`` has a line for each trial that is done. Reports of measured runs read neither, and
this program refuses a folder with a measured run in it, so the two are never mixed. A run that was
cut off is taken up after the last whole line.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from bench.results.store import RUN, ResultsError

LABORATORY, TRIALS, PREDICTIONS = "laboratory.json", "trials.jsonl", "predictions.json"
VERSION = 1


class Trial(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One server under one load for one window.

    ``kind``: whether the device was emulated; the real servers that a validation compares with are
    ``measured``. ``setup``: of the server, in words. ``step_ms``: what the scale of a map is, the
    verifier's step for one row. ``rate``: output tokens/s. ``missed_us``: p50 and p99 of how late
    the waits of emulated steps were. ``failed``: why there is no rate. ``sitting``: the number of
    the command that measured it; a run that was taken up has several.
    """

    id: str
    study: str
    kind: Literal["emulated", "measured"]
    setup: str
    table: str
    concurrency: int
    k: int
    block: int = 0
    step_ms: float | None = None
    delay_us: float = 0.0
    seconds: float = 0.0
    rate: float | None = None
    drafted: int = 0
    accepted: int = 0
    missed_us: tuple[float, float] | None = None
    failed: str | None = None
    sitting: int = 0

    @property
    def turn(self) -> tuple[int, int]:
        """What the windows have in common that may be compared with each other."""
        return self.block, self.sitting


class TrialFolder:
    """The records in one folder. Methods raise ResultsError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sitting = 0

    def begin(self, facts: Mapping[str, Any], fixed: Mapping[str, Any]) -> list[Trial]:
        """Make the folder, or take up the run that is there: the trials that are done.

        ``fixed``: what a run that is taken up must have in common with this one.
        """
        with _named(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        if (self.path / RUN).exists():
            raise ResultsError(
                f"{self.path} holds a measured run, with which emulated results are never mixed; "
                "choose another folder"
            )
        header = {"version": VERSION, "kind": "emulated", "fixed": dict(fixed), **facts}
        path = self.path / LABORATORY
        if not path.exists():
            with _named(path):
                path.write_bytes(msgspec.json.format(msgspec.json.encode(header)) + b"\n")
            return []
        there = self.header()
        wanted = msgspec.json.decode(msgspec.json.encode(header))
        for name, value in wanted["fixed"].items():
            if there["fixed"].get(name) != value:
                raise ResultsError(
                    f"{self.path} holds another run, whose {name} was "
                    f"{there['fixed'].get(name)!r} and not {value!r}; choose another folder"
                )
        trials = self.trials(cut=True)
        self._sitting = 1 + max((trial.sitting for trial in trials), default=-1)
        return trials

    def header(self) -> dict[str, Any]:
        """What the folder holds."""
        path = self.path / LABORATORY
        with _named(path):
            content = path.read_bytes()
        try:
            found = msgspec.json.decode(content, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise ResultsError(f"{path}: {error}") from error
        if found.get("kind") != "emulated" or found.get("version") != VERSION:
            raise ResultsError(f"{path} is not of a laboratory that this program reads")
        return found

    def trials(self, cut: bool = False) -> list[Trial]:
        """The last attempt of each; with ``cut`` a last line that was cut off is taken away."""
        path = self.path / TRIALS
        with _named(path):
            content = path.read_bytes() if path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            if cut and len(whole) != len(content):
                os.truncate(path, len(whole))
        try:
            found = [msgspec.json.decode(line, type=Trial) for line in whole.splitlines()]
        except msgspec.DecodeError as error:
            raise ResultsError(f"{path}: {error}") from error
        return list({trial.id: trial for trial in found}.values())

    def add(self, trial: Trial) -> None:
        """One that was done in this sitting."""
        path, trial = self.path / TRIALS, msgspec.structs.replace(trial, sitting=self._sitting)
        with _named(path), path.open("ab") as file:
            file.write(msgspec.json.encode(trial) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def predict(self, study: str, predicted: Mapping[str, float]) -> None:
        """Write down what a study is expected to find, by trial, before it is measured. What was
        predicted of trials that have been measured since stays as it is."""
        path = self.path / PREDICTIONS
        found, measured = {**self.predictions()}, {trial.id for trial in self.trials()}
        before = found.get(study, {})
        kept = {trial: value for trial, value in before.items() if trial in measured}
        found[study] = {**predicted, **kept}
        with _named(path):
            path.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")

    def predictions(self) -> dict[str, dict[str, float]]:
        """Tokens/s by study and trial."""
        path = self.path / PREDICTIONS
        with _named(path):
            content = path.read_bytes() if path.exists() else b"{}"
        try:
            return msgspec.json.decode(content, type=dict[str, dict[str, float]])
        except msgspec.DecodeError as error:
            raise ResultsError(f"{path}: {error}") from error


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """System errors as one sentence."""
    try:
        yield
    except OSError as error:
        raise ResultsError(f"{error.filename or path}: {error.strerror}") from error
