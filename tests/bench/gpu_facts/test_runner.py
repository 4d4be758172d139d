"""Measurements that fail, crash, hang, or leave processes behind; and the page of such a run."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import psutil

from bench.gpu_facts.facts import Fact, Outcome, Report, read_report
from bench.gpu_facts.overlap import overlap_index
from bench.gpu_facts.page import as_json, render
from bench.gpu_facts.runner import MARK, kill_marked, run_measurement

REPORT = """
import os, signal, subprocess, sys, time
from pathlib import Path
from bench.gpu_facts.facts import Report
report = Report(Path(sys.argv[2]), quick=False)
report.numbers("one", "µs", [3.0, 1.0, 2.0])
"""


def measured(program: str, seconds: float = 60.0) -> Outcome:
    command = (sys.executable, "-c", REPORT + program)
    return run_measurement("name", "Title", seconds, quick=False, command=command)


ONE = Fact("one", "µs", [3.0, 1.0, 2.0])


def test_a_measurement_that_succeeds() -> None:
    outcome = measured("report.text('two', 'yes')")
    assert outcome.error == ""
    assert outcome.facts == [ONE, Fact("two", text="yes")]


def test_a_measurement_that_fails_keeps_what_it_found() -> None:
    outcome = measured("report.failed('no luck'); sys.exit(1)")
    assert (outcome.facts, outcome.error) == ([ONE], "no luck")


def test_a_measurement_that_crashes() -> None:
    outcome = measured("os.kill(os.getpid(), signal.SIGSEGV)")
    assert (outcome.facts, outcome.error) == ([ONE], "killed by signal 11")


def test_a_measurement_that_hangs_is_killed_with_all_that_it_started() -> None:
    outcome = measured(
        "child = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "report.text('child', child.pid)\n"
        "time.sleep(1000)",
        seconds=3.0,
    )
    assert outcome.error == "not done after 3 s"
    child = int(outcome.facts[1].text)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie"


def test_only_marked_processes_are_killed() -> None:
    marked = subprocess.Popen(["sleep", "1000"], env={MARK: "mine"})
    other = subprocess.Popen(["sleep", "1000"], env={MARK: "yours"})
    try:
        assert kill_marked("mine") == []
        assert marked.poll() is not None
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_line_that_was_cut_off_is_no_fact(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    Report(path, quick=True).numbers("one", "µs", [3.0, 1.0, 2.0])
    path.write_text(path.read_text() + '{"what": "tw')
    assert read_report(path) == ([ONE], "")
    assert read_report(tmp_path / "missing") == ([], "")


def test_page() -> None:
    outcomes = [
        Outcome("a", "Good", [ONE, Fact("x | y", text="yes"), Fact("z", "GB/s", [123456.0])]),
        Outcome("b", "Bad", [], "RuntimeError: first\nsecond", 2.5),
    ]
    text = render(outcomes, "gpu_facts.json", True, date(2026, 1, 2))
    assert "`python -m bench.gpu_facts --quick` on 2026-01-02" in text
    assert "| one | 2 µs (1 to 3, n = 3) |" in text
    assert "| x \\| y | yes |" in text
    assert "| z | 123,456 GB/s |" in text
    assert "**Failed** after 2.5 s: RuntimeError: first second" in text
    found = json.loads(as_json(outcomes, True, date(2026, 1, 2)))
    assert found["measurements"][0]["facts"][0]["values"] == [3.0, 1.0, 2.0]
    assert found["measurements"][1]["error"] == "RuntimeError: first\nsecond"


def test_overlap_index() -> None:
    alone = {"draft": 100.0, "verify": 10.0}
    assert overlap_index(alone, alone) == 2.0
    assert overlap_index(alone, {"draft": 50.0, "verify": 5.0}) == 1.0


def test_without_a_gpu_there_is_no_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu_facts", "--page", str(page)],
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"},
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "no usable CUDA device" in done.stderr
    assert not page.exists()
