"""``pdv-bench sweep``: it can be cut off at any time, and says what is wrong in one sentence."""

from __future__ import annotations

import itertools
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import tiny_arguments
from simulated_sweep import made_run
from tiny_model import TinyPair

from bench.cli import main
from bench.load.window import tokens_within
from bench.results.store import ResultsFolder
from bench.sweep.plan import places

LOADS = ("--concurrency", "3", "--blocks", "2", "--seconds", "0.3", "--ramp", "0.05")
LENGTHS = ("--prompt-tokens", "12", "--output-tokens", "uniform:4-12")


def command(pair: TinyPair, folder: Path) -> list[str]:
    """A sweep of the tiny pair by two servers of one topology."""
    pairs = folder / "pairs.yaml"
    pairs.write_text(f"tiny: {{verifier: {pair.verifier}, draft: {pair.draft}}}", encoding="utf-8")
    flags = iter(tiny_arguments(pair))
    given = zip(flags, flags, strict=True)
    options = [f"{name[2:]}={value}" for name, value in given if not name.endswith("model")]
    return [
        *(sys.executable, "-m", "bench.cli", "sweep", "--topologies", "unified"),
        *(*LOADS, *LENGTHS, "--pairs", str(pairs), "--output", str(folder / "results")),
        "--no-roofline",
        *itertools.chain.from_iterable(("--option", text) for text in options),
    ]


@contextmanager
def started(arguments: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], Iterator[str]]]:
    """A sweep on the way, and the lines that it writes to stderr."""
    with subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as sweep:
        try:
            assert sweep.stderr is not None
            yield sweep, iter(sweep.stderr.readline, "")
        finally:
            sweep.kill()


def until(lines: Iterator[str], part: str) -> None:
    """Reads up to a line with this in it."""
    read = []
    for line in lines:
        if part in line:
            return
        read.append(line)
    pytest.fail(f"no line has {part!r}: {read}")


def check_whole(folder: ResultsFolder) -> None:
    """No cell is missing, none was measured twice, and all have their requests."""
    run = folder.run()
    expected = [place.id for block in range(3) for place in places(run, 0, block)]
    cells = folder.cells()
    assert [cell.id for cell in cells] == expected
    for cell in cells:
        assert cell.failed is None
        requests = folder.requests(cell)
        assert tokens_within(requests, cell.window_ns) > 0
        assert cell.counts.offered == sum(
            request.arrival_ns < cell.window_ns and request.ended_ns >= 0 for request in requests
        )
    end = folder.stopped()
    assert end is not None
    assert (end.blocks, end.stopped) == (2, "all blocks were measured")


def test_a_sweep_that_was_killed_goes_on_to_its_report(
    tiny_pair: TinyPair, run_place: object, tmp_path: Path
) -> None:
    """Also the smoke test of a whole sweep. No server is left, as a fixture checks."""
    arguments = command(tiny_pair, tmp_path)
    folder = ResultsFolder(tmp_path / "results")
    with started(arguments) as (sweep, lines):
        until(lines, "tiny: block 1 of 2 done")
        sweep.kill()
    before = (folder.path / "cells.jsonl").read_bytes()
    measured = len(folder.cells())
    assert 4 <= measured < 6
    assert folder.stopped() is None
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert f"results: going on after {measured} cells\n" in done.stderr
    check_whole(folder)
    assert (folder.path / "cells.jsonl").read_bytes().startswith(before)
    assert "| C=3 | unified (again) | 2 of 2 |" in done.stdout
    assert (folder.path / "report.html").exists()
    facts = folder.run()
    assert facts.command[:2] == ["pdv-bench", "sweep"]
    assert facts.pairs[0].model_fingerprint
    assert facts.configurations[0].options["model"]["model"] == str(tiny_pair.verifier)


@pytest.mark.slow
def test_a_full_disk_and_ctrl_c_keep_what_is_there(
    tiny_pair: TinyPair, run_place: object, tmp_path: Path
) -> None:
    """The disk is full for the sweep alone: files must not grow beyond a limit."""
    arguments = command(tiny_pair, tmp_path)
    folder = ResultsFolder(tmp_path / "results")
    with started(arguments) as (sweep, lines):
        until(lines, "tiny: block 0 of 2 done")
        size = (folder.path / "cells.jsonl").stat().st_size
        resource.prlimit(sweep.pid, resource.RLIMIT_FSIZE, (size, size))
        said = list(lines)
        assert sweep.wait() == 1
    assert said[-1].startswith("Error: ")
    assert said[-1].endswith(": File too large\n")
    assert len(said) == 1
    assert len(folder.cells()) == 2
    with started(arguments) as (sweep, lines):
        until(lines, "tiny: block 1 of 2 done")
        sweep.send_signal(signal.SIGINT)
        said = list(lines)
        assert sweep.wait() == 130
    kept = len(folder.resume())
    assert 4 <= kept < 6
    assert said[-1].startswith(f"interrupted: {kept} cells are kept in {folder.path}; the same")
    assert subprocess.run([*arguments, "--resume"], capture_output=True).returncode == 0
    check_whole(folder)


def run(*arguments: str | Path) -> Result:
    """A command that is to end at once."""
    return CliRunner().invoke(main, ["sweep", *map(str, arguments)])


WRONG = [
    (["--topologies", "unifed"], "topology 'unifed' is not one of"),
    (["--topologies", "pd,pd"], "'pd,pd' names something twice"),
    (["--topologies", "pd+kv-handoff"], "an option is NAME=VALUE"),
    (["--topologies", "pd", "--no-again"], "there is nothing to compare"),
    (["--option", "max-num-seq=8"], "did you mean 'max_num_seqs'?"),
    (["--topologies", "unified+kv-handoff=copy,pd"], "--kv-handoff copy is for topologies with"),
    (["--concurrency", "1,x"], "'1,x' is not a list of numbers"),
    (["--concurrency", "4,4"], "the load C=4 is given twice"),
    (["--rate", "0"], "'0' has a rate that is not above 0"),
    (["--slo", "ttft=fast"], "is not of the form"),
    (["--prompt-tokens", "many"], "'many' is not a length such as"),
    (["--prompt-tokens", "100000"], "100000"),
    (["--pairs", "none.yaml"], "cannot read --pairs none.yaml: No such file or directory"),
    (["--workload", "none.jsonl"], "none.jsonl"),
    (["--trace", "none.jsonl"], "none.jsonl"),
    (["--budget", "30s"], "warm-up and one block take 84 s at least, and the budget is 30 s"),
    (["--budget", "soon"], "'soon' is not a time such as 90s, 10m or 2h"),
    (["--resume"], "holds no run that could be taken up"),
    (["--resume", "--restart"], "--resume and --restart exclude each other"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG)
def test_what_is_wrong_is_said_in_one_sentence(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    done = run("--output", tmp_path / "results", *arguments)
    assert done.exit_code == 2
    (*_, last) = done.output.rstrip().split("\nError: ")
    assert "\n" not in last
    assert said in last
    assert not list(tmp_path.glob("results/*"))


def test_a_malformed_trace_is_named_by_line(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    good = '{"arrival": 0.5, "prompt_tokens": 8, "max_tokens": 4}\n'
    file.write_text(good + good.replace("0.5", "0.1"), encoding="utf-8")
    done = run("--trace", file, "--output", tmp_path / "results")
    assert done.exit_code == 2
    assert f"{file}, line 2" in done.output
    file.write_text(good, encoding="utf-8")
    done = run("--trace", file, "--output", tmp_path / "results")
    assert "the trace is over after 0.5 s, and the first 1 s do not count" in done.output


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    folder.begin(made_run())
    (tmp_path / "cells.jsonl").write_text("{}\n", encoding="utf-8")
    done = run("--output", tmp_path)
    assert done.exit_code == 2
    assert "cells.jsonl, line 1" in done.output
    (tmp_path / "cells.jsonl").unlink()
    text = (tmp_path / "run.json").read_text(encoding="utf-8")
    (tmp_path / "run.json").write_text(text.replace(": 2,", ": 1,", 1), encoding="utf-8")
    done = run("--output", tmp_path)
    assert done.exit_code == 2
    assert "these results have schema version 1" in done.output
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    assert run("--output", file).exit_code == 2
