"""Runs each measurement in a process of its own, and sees to it that nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import psutil

from bench.gpu_facts.facts import Outcome, read_report

COMMAND = (sys.executable, "-m", "bench.gpu_facts.measure")
"""How a measurement is started; its name, file, parent and perhaps ``quick`` follow."""

MARK = "GPU_FACTS_MARK"
"""Environment variable by which all processes of a measurement are known, whatever they become."""

_GONE_SECONDS = 10.0


def run_measurement(
    name: str, title: str, seconds: float, quick: bool, command: Sequence[str] = COMMAND
) -> Outcome:
    """Its facts, also those from before it failed or was killed for taking longer."""
    started = time.monotonic()
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="gpu-facts-") as folder:
        path = Path(folder) / "facts.jsonl"
        options = [name, str(path), str(os.getpid()), *(["quick"] if quick else [])]
        process = subprocess.Popen(
            [*command, *options],
            env={**os.environ, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        error = ""
        try:
            status = process.wait(seconds)
            if status < 0:
                error = f"killed by signal {-status}"
            elif status:
                error = f"ended with status {status}"
        except subprocess.TimeoutExpired:
            error = f"not done after {seconds:.0f} s"
        finally:
            process.kill()
            process.wait()
            left = kill_marked(mark)
        facts, said = read_report(path)
    if left:
        said = f"{said or error}; could not be killed: {left}".removeprefix("; ")
    return Outcome(name, title, facts, said or error, round(time.monotonic() - started, 1))


def kill_marked(mark: str) -> list[int]:
    """Kill what a measurement has left running; ids of what does not die."""
    deadline = time.monotonic() + _GONE_SECONDS
    while left := _marked(mark):
        if time.monotonic() > deadline:
            return [process.pid for process in left]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1.0)
    return []


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if (
                process.environ().get(MARK) == mark
                and process.status() != psutil.STATUS_ZOMBIE
                and process.pid != os.getpid()
            ):
                found.append(process)
    return found
