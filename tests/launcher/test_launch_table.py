"""A topology of one's own, served by real processes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from conftest import tiny_arguments
from server_process import ServerProcess
from tiny_model import TinyPair

from pdv_mp.client.client import Client
from pdv_mp.config import EngineConfig
from pdv_mp.process import CONFIG_FILE, READY_FILE
from pdv_mp.sampling_params import SamplingParams
from pdv_mp.topology import Topology, Worker

FIXED = SamplingParams(max_tokens=8, ignore_eos=True)

TABLE = """
workers:
  - {name: first, stages: [prefill], threads: 1, device: cpu}
  - {name: second, stages: [draft, verify], threads: 2, max-batch: 4, device: cpu}
"""


def current_pids(server: ServerProcess) -> dict[str, int]:
    ready = json.loads((server.run_dir / READY_FILE).read_text(encoding="utf-8"))
    return dict(ready["pids"])


def answer(client: Client) -> list[int]:
    return list(client.complete("def add(", FIXED).ids)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_table_is_served_as_it_says(tiny_pair: TinyPair, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(TABLE)
    arguments = tiny_arguments(tiny_pair, "--topology-file", str(file))
    place = arguments.index("--threads")
    del arguments[place : place + 2]
    with ServerProcess(*arguments) as server:
        server.wait_ready()
        file.unlink()  # nobody reads it again
        assert server.ready["topology"] == "mine"
        first = current_pids(server)
        assert set(first) == {"launcher", "front", "pools", "first-0", "second-0"}
        threads = {
            name: psutil.Process(pid).environ()["OMP_NUM_THREADS"]
            for name, pid in first.items()
            if name != "launcher"
        }
        assert threads == {"front": "1", "pools": "1", "first-0": "1", "second-0": "2"}
        config = EngineConfig.from_json((server.run_dir / CONFIG_FILE).read_text())
        assert config.table == Topology(
            "mine",
            (
                Worker("first", ("prefill",), 1, None, "cpu"),
                Worker("second", ("draft", "verify"), 2, 4, "cpu"),
            ),
        )
        with Client(server.ipc) as client:
            wanted = answer(client)
            os.kill(first["first-0"], signal.SIGKILL)
            until(lambda: current_pids(server)["first-0"] != first["first-0"])
            second = current_pids(server)
            assert {name for name in first if first[name] != second[name]} == {"first-0"}
            assert answer(client) == wanted
            os.kill(second["second-0"], signal.SIGSTOP)
            os.kill(second["second-0"], signal.SIGKILL)
            until(lambda: current_pids(server)["second-0"] != second["second-0"])
            assert answer(client) == wanted
            until(lambda: current_pids(server)["first-0"] != second["first-0"])
        assert server.stop().code == 0


def test_a_stopped_worker_is_noticed_within_the_timeout(
    start_server: Callable[..., ServerProcess],
) -> None:
    server = start_server("--lane-timeout", "4")
    with Client(server.ipc) as client:
        wanted = answer(client)
        os.kill(server.pids["worker-0"], signal.SIGSTOP)
        assert answer(client) == wanted
    done = server.stop()
    assert done.code == 0
    assert any("worker-0 did not answer for 4 s and was killed; it" in m for m in done.messages)
