"""The folder that a checkpoint is written to: whole or not there at all."""

from __future__ import annotations

import fcntl
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

from bench.inflate.errors import InflateError

_LOCK = ".inflating"


def check_free(output: Path) -> None:
    """Raises InflateError where something is in the way of a new folder."""
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists() or output.is_symlink():
        raise InflateError(f"{output} exists and is not empty; remove it or choose another folder.")


def check_space(output: Path, needed: int) -> None:
    """Raises InflateError where the disk has fewer than ``needed`` bytes left for ``output``."""
    place = output.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise InflateError(
            f"{output}: the checkpoint needs {needed / 1e9:.2f} GB and the disk has "
            f"{free / 1e9:.2f} GB left; choose an --output on another disk."
        )


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` that takes its name at the end, and is removed on any failure.

    SIGTERM counts as a failure, like Ctrl-C. What a run that was killed left behind is removed by
    the next one with the same output. Raises InflateError where another run is at work on it.
    """
    partial = output.with_name(f".{output.name}.partial")
    with _terminated_as_interrupt():
        output.parent.mkdir(parents=True, exist_ok=True)
        lock = _claim(partial, output)
        try:
            yield partial
            check_free(output)
            (partial / _LOCK).unlink()
            partial.replace(output)
        except BaseException:
            shutil.rmtree(partial)
            raise
        finally:
            lock.close()


def _claim(partial: Path, output: Path) -> TextIO:
    """An empty folder ``partial``, locked for this process."""
    if partial.exists() and not (partial / _LOCK).exists():
        raise InflateError(f"{partial} is in the way and not ours; remove or rename it.")
    partial.mkdir(exist_ok=True)
    lock = (partial / _LOCK).open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise InflateError(f"{output}: another run is writing this checkpoint.") from None
    for path in partial.iterdir():
        if path.name != _LOCK:
            path.unlink()
    return lock


@contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
