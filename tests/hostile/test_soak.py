"""Thousands of requests with cancels, disconnects and errors: nothing leaks, nothing ends twice."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import matplotlib as mpl
import psutil
import pytest
from hostile.attacked import Attacked
from hostile.soak_client import Soak
from matplotlib.figure import Figure
from server_process import ServerProcess
from tiny_model import VOCABULARY

mpl.use("Agg")

FEW, MANY = 4_000, 10_000
SAMPLE_EVERY = 50
MOST_GROWTH = 0.05
MOST_GROWTH_BYTES = 8 * 2**20
OUTPUT = Path(__file__).resolve().parents[2] / "build" / "test-output"

Samples = dict[str, list[tuple[int, int]]]


def growth(samples: list[tuple[int, int]]) -> tuple[float, float]:
    """Median resident bytes in the second and in the last third of the requests."""
    end = samples[-1][0]
    second = [size for at, size in samples if end / 3 <= at < 2 * end / 3]
    last = [size for at, size in samples if at >= 2 * end / 3]
    return statistics.median(second), statistics.median(last)


def plot(samples: Samples, path: Path) -> None:
    """Memory of every process over the requests that are over."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, of_process in samples.items():
        axes.plot(
            [at for at, _ in of_process], [size / 2**20 for _, size in of_process], label=name
        )
    axes.set_xlabel("requests that are over")
    axes.set_ylabel("resident memory, MiB")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def run(attacked: Attacked, requests: int) -> tuple[Soak, Samples]:
    """Send all requests; the memory of every process, sampled meanwhile."""
    server = attacked.server
    pids = {"launcher": server.pid, **attacked.pids}
    processes = {name: psutil.Process(pid) for name, pid in pids.items()}
    samples: Samples = {name: [] for name in processes}

    def sample(over: int) -> None:
        if not samples["front"] or over >= samples["front"][-1][0] + SAMPLE_EVERY:
            for name, process in processes.items():
                samples[name].append((over, process.memory_info().rss))

    endpoints = [server.endpoint, server.ipc]
    with closing(Soak(endpoints, requests, 1, 19, VOCABULARY, sample)) as soak:
        soak.run()
    attacked.check()
    return soak, samples


@pytest.mark.timeout(600)
@pytest.mark.parametrize("requests", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_nothing_is_left_of_thousands_of_requests(
    requests: int,
    start_server: Callable[..., ServerProcess],
    tmp_path: Path,
    report_line: Callable[[str], None],
) -> None:
    options = ("--kv-cache-memory", "384K", "--max-num-seqs", "24", "--max-open-requests", "110")
    with closing(Attacked(start_server(*options))) as attacked:
        soak, samples = run(attacked, requests)
        info = attacked.wait_idle()
    plots = [tmp_path / "soak-memory.png", OUTPUT / "soak-memory.png"]
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for path in plots:
        plot(samples, path)

    pools, counters = info["pools"], info["counters"]
    assert pools["blocks_free"] + pools["blocks_cached"] + pools["blocks_in_use"] == pools["blocks"]
    assert pools["blocks_in_use"] == pools["slots_in_use"] == 0
    assert counters["free_credits"] == info["facts"]["credits"]
    assert soak.queue_full
    assert sum(soak.finished.values()) + soak.lost == requests
    assert counters["errors"]["internal"] == counters["errors"]["lane_failed"] == 0
    assert counters["errors"]["slow_consumer"] == 0
    assert set(soak.finished) >= {
        *("stop", "length", "abort", "duplicate_id"),
        *("bad_request", "too_large", "context_length_exceeded"),
    }
    report_line(
        f"soak: {requests} requests, {soak.lost} lost with their client, {soak.queue_full} more "
        f"refused as queue_full; ended as {dict(soak.finished.most_common())}; plot in {plots[-1]}"
    )
    for name, of_process in samples.items():
        second, last = growth(of_process)
        report_line(
            f"soak: {name} {second / 2**20:.1f} MiB in the second third, "
            f"{last / 2**20:.1f} MiB in the last"
        )
        assert last < max(second * (1 + MOST_GROWTH), second + MOST_GROWTH_BYTES), name
