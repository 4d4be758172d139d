"""Fixtures for all tests: nothing may be left behind, a tiny model pair, and servers of it."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from leftovers import MARK, Leftovers
from server_process import ServerProcess
from tiny_model import TinyPair, make_tiny_pair

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Processes that tests start run this tree, whatever is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)
for _name in [name for name in os.environ if name.startswith("PDV_")]:
    del os.environ[_name]


@pytest.fixture(scope="session")
def run_place() -> Iterator[tuple[str, Path]]:
    """A place of its own for this run's sockets, and a mark for its processes."""
    mark = uuid.uuid4().hex
    base = Path(tempfile.mkdtemp(prefix="pdvtest-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, mark)
        patch.setenv("XDG_RUNTIME_DIR", str(base))
        leftovers = Leftovers(mark, base)
        yield mark, base
        left = leftovers.check()
    shutil.rmtree(base)
    assert not left, "the test run left behind:\n" + "\n".join(left)


@pytest.fixture(autouse=True)
def _nothing_left(run_place: tuple[str, Path]) -> Iterator[None]:
    """Fails a test that leaves a process, a socket, a run directory or shared memory."""
    leftovers = Leftovers(*run_place)
    yield
    left = leftovers.check()
    assert not left, "the test left behind:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    """Folders of a tiny random verifier and a draft that agrees with it about every second time."""
    return make_tiny_pair(tmp_path_factory.mktemp("tiny"))


def tiny_arguments(pair: TinyPair, *more: str) -> list[str]:
    """Options of ``pdv-launch`` that serve the tiny pair; it drafts as far as ever, whatever that
    costs here, unless ``more`` says otherwise."""
    models = ["--model", str(pair.verifier), "--draft-model", str(pair.draft)]
    fixed = ["--num-speculative-tokens", "4"]
    return [*models, *fixed, "--device", "cpu", "--threads", "1", "--kv-cache-memory", "16M", *more]


@pytest.fixture
def start_server(tiny_pair: TinyPair, run_place: object) -> Iterator[Callable[..., ServerProcess]]:
    """``start_server(*options, environment=…)`` starts a server of the tiny pair for this test."""
    with ExitStack() as stack:

        def start(*options: str, **keywords: object) -> ServerProcess:
            process = ServerProcess(*tiny_arguments(tiny_pair, *options), **keywords)
            return stack.enter_context(process).wait_ready()

        yield start


@pytest.fixture(scope="module")
def tiny_server(tiny_pair: TinyPair, run_place: object) -> Iterator[ServerProcess]:
    """One running server of the tiny pair for all tests of a module; do not stop it."""
    arguments = tiny_arguments(tiny_pair, "--check-invariants")
    with ServerProcess(*arguments) as process:
        yield process.wait_ready()
        process.stop()


LOSSLESSNESS = "losslessness"


@pytest.fixture
def report_line(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Adds a line to the section "losslessness" at the end of the run, also of a parallel one."""
    return lambda line: record_property(LOSSLESSNESS, line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what the losslessness tests counted."""
    lines = [
        str(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for key, value in report.user_properties
        if key == LOSSLESSNESS
    ]
    if lines:
        terminalreporter.section(LOSSLESSNESS)
        for line in lines:
            terminalreporter.line(line)
