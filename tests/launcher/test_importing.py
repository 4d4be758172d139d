"""Interrupts while modules are read."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.importing import interrupts_end

STUBBORN = """
import signal, sys
print("here", flush=True)
try:
    signal.pause()
except BaseException as error:
    raise ImportError("no luck") from error
"""
PROGRAM = """
from launcher.importing import interrupts_end
with interrupts_end("that was all\\n", 7):
    import stubborn
"""


def test_an_import_that_swallows_interrupts_is_ended(tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    (tmp_path / "program.py").write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (7, "that was all\n")


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_afterwards_interrupts_are_what_they_were(handler: signal.Handlers) -> None:
    before = signal.signal(signal.SIGINT, handler)
    try:
        with interrupts_end("", 7):
            assert (signal.getsignal(signal.SIGINT) == handler) == (handler == signal.SIG_IGN)
        assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, before)
