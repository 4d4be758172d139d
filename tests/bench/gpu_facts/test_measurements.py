"""Every measurement from end to end with a fake GPU, its second processes included."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.gpu_facts.facts import Outcome
from bench.gpu_facts.measurements import MEASUREMENTS
from bench.gpu_facts.runner import run_measurement

FAKE = (sys.executable, str(Path(__file__).with_name("fake_gpu.py")))


def measure(name: str) -> Outcome:
    command = (*FAKE, "bench.gpu_facts.measure")
    return run_measurement(name, MEASUREMENTS[name].title, 100, quick=True, command=command)


FEW = ("hop",)
"""Those that `make test` runs; each starts Python with torch one to three times."""


@pytest.mark.parametrize(
    "name",
    [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in MEASUREMENTS],
)
def test_measurement(name: str) -> None:
    outcome = measure(name)
    assert outcome.error == ""
    found = {fact.what: fact for fact in outcome.facts}
    assert all(fact.values or fact.text for fact in outcome.facts)
    if name == "ipc":
        assert found["contents in both directions, two processes at once"].text == "right"
        assert len(found["cudaIpcOpenMemHandle"].values) == 2
    elif name == "hop":
        assert found["kernels saw each other's writes"].text == "in all 640 hand-overs"
        assert len(found["kernel, IPC event, message, one way"].values) == 3
    elif name in ("streams", "processes"):
        index = found["8B and 1B, graph: overlap index"]
        assert len(index.values) == 2
        assert all(value > 0 for value in index.values)
    elif name == "owner":
        assert found["reading afterwards"].text == "what was there"
        assert found["opening a handle of a process that was killed"].text.startswith("refused")
    elif name == "mps":
        assert found["MPS"].text.startswith("not tried: ")
