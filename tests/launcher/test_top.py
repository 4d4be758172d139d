"""``pdv-top``: what it draws, and how it meets real servers."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import zmq
from rich.console import Console
from server_process import ServerProcess

from launcher.top_rates import Snapshot, Window
from launcher.top_view import WIDTH, view, waiting
from pdv_mp import Client
from pdv_mp.metrics.histogram import LATENCY_BOUNDS_NS

Start = Callable[..., ServerProcess]

TOP = (sys.executable, "-m", "launcher.top")
SECONDS = 60


def run_top(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": str(WIDTH)}
    return subprocess.run(
        [*TOP, *arguments], capture_output=True, text=True, timeout=SECONDS, env=environment
    )


def drawn(window: Window, trouble: str | None = None) -> str:
    span = window.span
    assert span is not None
    output = io.StringIO()
    Console(file=output, width=WIDTH).print(view(span, "tcp://127.0.0.1:5555", trouble))
    return output.getvalue()


def part(mean_us: float, bucket: int, count: int) -> dict[str, Any]:
    return {
        "n": count,
        "mean_us": mean_us,
        "p50_us": mean_us,
        "p99_us": mean_us,
        "total_ns": int(mean_us * 1000) * count,
        "buckets": {str(bucket): count},
    }


def info(times: int, **changes: Any) -> dict[str, Any]:
    """An answer of a server that has done something so many times."""
    latencies = {
        name: {"counts": [0, *[times] * len(LATENCY_BOUNDS_NS)], "sum": 0.0}
        for name in ("time_to_first_token", "time_per_output_token", "inter_token")
    }
    totals = {"batches": 10, "sequences": 40, "rows": 200, "compute_ns": 10**8, "batch_ns": 10**6}
    parts = {"wire": part(150.0, 275, 50 * times), "encode": part(20.0, 229, 50 * times)}
    edge = {"messages": 50 * times, "bytes": 10**5 * times, "kv_bytes": 0, "local": 0}
    return {
        "instance": "one",
        "topology": "pdv",
        "facts": {"model": "verifier", "draft_model": "draft", "device": "cpu"},
        "processes": {"front": 100, "verify-0": 101},
        "away": [],
        "cpu": {
            "front": {"pid": 100, "seconds": 0.25 * times, "threads": 3},
            "verify-0": {"pid": 101, "seconds": 1.5 * times, "threads": 5},
        },
        "memory": {"front": {"rss": 50 << 20, "pss": 40 << 20, "private": 30 << 20}},
        "restarts": {"verify-0": 0},
        "gpus": [],
        "stages": {"prefill": {"waiting": 1, "prompts": 2}, "verify": {"running": 3, "ready": 0}},
        "pools": {"slots": 39, "slots_in_use": 5, "blocks": 100, "blocks_in_use": 25},
        "counters": {
            "waiting_requests": 4,
            "untokenized_requests": 0,
            "open_requests": 10,
            "connections": 2,
            "restarts": 0,
            "finished": {"stop": times, "length": times, "abort": 0},
            "errors": {"queue_full": 1},
        },
        "speculation": {"method": "draft_model"},
        "replicas": [{"process": "verify-0", "controller": {"length": 4, "acceptance": 0.5}}],
        "served": {
            "generation_tokens": 100 * times,
            "good_requests": times,
            "drafted_lengths": [0, 0, 0, 0, 10 * times],
            "accepted_lengths": [5 * times, 0, 5 * times, 0, 0],
            "latency_bounds_ns": list(LATENCY_BOUNDS_NS),
            "latencies": latencies,
        },
        "batch_totals": {
            "verify": {name: number * times for name, number in totals.items()},
        },
        "handoffs": {"draft>verify": {**edge, "parts": parts}},
        **changes,
    }


def lines(text: str) -> dict[str, str]:
    """The lines of a picture by their first word."""
    return {line.split()[0]: line for line in text.splitlines() if line.strip()}


def test_rates_are_of_the_time_between_two_looks() -> None:
    window = Window(10.0)
    window.add(Snapshot(100.0, info(1)))
    window.add(Snapshot(102.0, info(3)))
    text = drawn(window)
    assert max(map(len, text.splitlines())) <= WIDTH
    found = lines(text)
    assert re.search(r"requests/s +2\.0 +goodput/s +1\.0", found["requests/s"])
    assert re.search(r"tokens/s +100 +errors +1", found["tokens/s"])
    assert re.search(r"running +5 +slots +39", found["running"])
    assert re.search(r"waiting +5", found["waiting"])
    assert re.search(r"KV used +25%", found["KV"])
    speculation = "25% accepted  2.00 tokens/cycle  4.0 drafted  4 now  ▄▄  "
    assert re.search(speculation.rstrip(), found["speculation"])
    assert re.search(r"front +100 +25% +3 +50M +40M", found["front"])
    assert re.search(r"verify-0 +101 +150% +5", found["verify-0"])
    assert re.search(r"verify +10\.0 +4\.0 +200 +0 +10% +0%", found["verify"])
    edge = r"draft>verify +50\.0 +100 +170 µs +wire +1\d\d µs +1\d\d µs"
    assert re.search(edge, found["draft>verify"])


def test_a_first_look_has_no_rates_and_shows_what_was() -> None:
    window = Window(10.0)
    window.add(Snapshot(100.0, info(4)))
    found = lines(drawn(window))
    assert re.search(r"requests/s +–", found["requests/s"])
    assert "25% accepted" in found["speculation"]
    assert "since the start" in found["pdv-top"]


def test_a_process_that_is_away_and_a_server_that_is_new() -> None:
    window = Window(10.0)
    window.add(Snapshot(100.0, info(9)))
    window.add(Snapshot(101.0, info(1, instance="two", away=["draft-0"], restarts={"draft-0": 2})))
    found = lines(drawn(window, trouble="no answer for 3 s"))
    assert re.search(r"requests/s +–", found["requests/s"]), "what was before is forgotten"
    assert re.search(r"draft-0 +– +2 +restarting", found["draft-0"])
    assert found["no"] == "no answer for 3 s"


def test_the_window_forgets_what_is_old() -> None:
    window = Window(2.0)
    for second in range(10):
        window.add(Snapshot(float(second), info(second)))
    assert window.span is not None
    assert (window.span.before.at, window.span.after.at) == (7.0, 9.0)


def test_gpus_and_a_server_that_says_little() -> None:
    bare = {"instance": "x", "topology": "unified", "away": [], "processes": {}, "replicas": []}
    bare["facts"] = {"model": "m", "draft_model": None, "device": "cuda:0"}
    bare["gpus"] = [{"index": 0, "name": "GPU", "memory_used": 3 << 30, "memory_total": 80 << 30}]
    bare["memory"] = {"front": {"rss": 1 << 20, "vram": 2 << 30}}
    window = Window(1.0)
    window.add(Snapshot(0.0, bare))
    window.add(Snapshot(1.0, bare))
    text = drawn(window)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert re.search(r"0 GPU +– +3\.0G +80G", text)


@pytest.mark.parametrize("option", ["--interval", "--window"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_no_time_is_not_a_time(option: str, value: str) -> None:
    done = run_top(option, value)
    assert done.returncode == 2
    assert f"{value} is not a finite number" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_address_in_brackets_is_no_markup() -> None:
    console = Console(width=WIDTH, record=True, file=io.StringIO())
    console.print(waiting("tcp://[fd00::5]:5555", "nothing yet"))
    assert "tcp://[fd00::5]:5555" in console.export_text()


def test_without_a_server_it_says_so() -> None:
    done = run_top("--once", "--connect", "ipc:///nonexistent/socket")
    assert done.returncode == 1
    assert done.stderr.startswith("pdv-top: nothing was heard from ipc:///nonexistent/socket")
    assert len(done.stderr.splitlines()) == 1
    for wrong in (["--connect", "5555"], ["--svg", "x.svg"], ["--token-file", "/nonexistent"]):
        mistake = run_top(*wrong)
        assert mistake.returncode == 2
        assert len(mistake.stderr.splitlines()) == 1


def keep_busy(endpoint: str, enough: threading.Event) -> None:
    with Client(endpoint) as client:
        while not enough.is_set():
            client.complete([5, 6], max_tokens=100, ignore_eos=True)


def check_once(server: ServerProcess, picture: Path) -> None:
    """``--once`` prints a running server and draws it."""
    enough = threading.Event()
    load = threading.Thread(target=keep_busy, args=(server.ipc, enough))
    load.start()
    try:
        watch = ["--connect", server.endpoint, "--once", "--interval", "1"]
        result = run_top(*watch, "--svg", str(picture))
    finally:
        enough.set()
        load.join()
    assert result.returncode == 0, result.stderr
    found = lines(result.stdout)
    assert {"front", "worker-0", "launcher", "verify", "verify>front"} <= found.keys()
    assert str(server.pids["worker-0"]) in found["worker-0"]
    assert max(map(len, result.stdout.splitlines())) <= WIDTH
    svg = picture.read_text(encoding="utf-8")
    assert "@font-face" not in svg, "it needs no other file"
    assert not re.search(r"url\((?!#)", svg)
    assert "worker-0" in "".join(ElementTree.fromstring(svg).itertext()).replace("\xa0", " ")


@pytest.fixture
def watching(start_server: Start) -> Iterator[tuple[ServerProcess, subprocess.Popen[str]]]:
    """A server, and a ``pdv-top`` of it whose output is no terminal."""
    server = start_server()
    command = [*TOP, "--connect", server.ipc, "--interval", "0.2"]
    environment = {**os.environ, "COLUMNS": str(WIDTH), "PYTHONUNBUFFERED": "1"}
    top = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    yield server, top
    top.kill()
    top.communicate()


def read_until(top: subprocess.Popen[str], pattern: str) -> None:
    """Reads what it prints until a line has a pattern; the test's time limit ends it else."""
    assert top.stdout is not None
    for line in top.stdout:
        if re.search(pattern, line):
            return
    raise AssertionError(f"it ended: {top.stderr and top.stderr.read()}")


def test_it_goes_on_when_the_server_is_gone_and_leaves_on_ctrl_c(
    watching: tuple[ServerProcess, subprocess.Popen[str]], tmp_path: Path
) -> None:
    server, top = watching
    check_once(server, tmp_path / "top.svg")
    read_until(top, r"^worker-0 +\d+ +\d+%")
    os.kill(server.pids["worker-0"], signal.SIGKILL)
    read_until(top, r"restarts +1\b")
    assert server.stop().code == 0
    read_until(top, "no answer for")
    top.send_signal(signal.SIGINT)
    _, errors = top.communicate(timeout=SECONDS)
    assert (top.returncode, errors) == (0, "")


def test_a_server_that_never_answers_is_shown_as_such() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    silent = context.socket(zmq.ROUTER)
    port = silent.bind_to_random_port("tcp://127.0.0.1")
    try:
        done = run_top("--once", "--connect", f"tcp://127.0.0.1:{port}")
    finally:
        silent.close(0)
        context.term()
    assert done.returncode == 1
    assert "is a server running there" in done.stderr
