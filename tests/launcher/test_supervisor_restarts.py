"""Workers that die are started again: the real supervisor over fake children."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher.run_directory import sweep_stale


def kill(pids: dict[str, int], name: str = "worker-0") -> None:
    os.kill(pids[name], signal.SIGKILL)


def test_a_dead_worker_is_started_again_and_the_front_is_told(serve: Any) -> None:
    server = serve()
    first = server.wait_ready()["pids"]
    kill(first)
    second = server.wait_ready()["pids"]
    assert second["front"] == first["front"]
    assert second["worker-0"] != first["worker-0"]
    kill(second)
    third = server.wait_ready()["pids"]
    assert not psutil.pid_exists(second["worker-0"])
    server.send(signal.SIGTERM)
    code, text = server.finish()
    assert code == 0
    said = [line for line in text.splitlines() if "worker-0" in line and "pdv-launch" in line]
    started = "pdv-launch: worker-0 was killed by SIGKILL; it is started again"
    assert said[0] == f"{started} now (restart 1 of at most 10 within 600 s)"
    assert said[1].startswith("pdv-launch: worker-0 serves again after ")
    assert said[2] == f"{started} in 0.1 s (restart 2 of at most 10 within 600 s)"
    told = [line for line in text.splitlines() if line.startswith("[front]")]
    assert told == [
        "[front] told to Restarting worker-0 1 9",
        "[front] told to Restarting worker-0 2 8",
        "[front] told to Drain",
        "[front] told to Stop",
    ]
    assert not any(psutil.pid_exists(pid) for pid in third.values())


def test_its_last_output_is_shown(serve: Any) -> None:
    server = serve(worker="serve,crash,serve")
    kill(server.wait_ready()["pids"])
    server.wait_ready()
    server.send(signal.SIGTERM)
    code, text = server.finish()
    assert code == 0
    assert (
        "pdv-launch: worker-0 exited with status 7 before it was ready; it is started again in "
        "0.1 s (restart 2 of at most 10 within 600 s); the last that it wrote:\n"
        "  the roof is on fire\n"
    ) in text


@pytest.mark.parametrize("worker", ["serve", "serve,crash"])
def test_a_used_up_budget_ends_the_server(serve: Any, worker: str) -> None:
    server = serve(worker=worker, restarts={"max_restarts": 2, "first_delay": 0.01})
    kill(server.wait_ready()["pids"])
    if worker == "serve":
        for _ in range(2):
            kill(server.wait_ready()["pids"])
    code, text = server.finish()
    assert code == 4
    how = "was killed by SIGKILL" if worker == "serve" else "exited with status 7"
    assert f"pdv-launch: worker-0 {how}" in text
    assert ", after 2 restarts within 600 s" in text
    assert text.count("it is started again") == 2
    assert "[front] told to Lost" in text


def test_a_worker_that_cannot_start_again_ends_the_server(serve: Any) -> None:
    server = serve(worker="serve,fail")
    kill(server.wait_ready()["pids"])
    code, text = server.finish()
    assert code == 4
    assert "pdv-launch: worker-0 could not start again: there is no disk left" in text
    assert "[front] told to Lost" in text


@pytest.mark.parametrize("worker", ["mute", "slow-start"])
def test_a_restart_without_progress_ends_the_server(serve: Any, worker: str) -> None:
    server = serve(worker=f"serve,{worker}", timeouts={"start": 3})
    pids = server.wait_ready()["pids"]
    kill(pids)
    code, text = server.finish()
    assert code == 4
    assert "worker-0 showed no progress for 3 s of starting again" in text
    assert "[front] told to Lost" in text


@pytest.mark.parametrize("when", ["back-off", "starting"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_restart_stops_cleanly(
    serve: Any, when: str, number: signal.Signals
) -> None:
    worker = "serve,slow-start" if when == "starting" else "serve"
    server = serve(worker=worker, restarts={"first_delay": 60.0, "longest_delay": 60.0})
    pids = server.wait_ready()["pids"]
    kill(pids)
    if when == "back-off":
        kill(server.wait_ready()["pids"])
        server.wait_line("it is started again in 60 s")
    else:
        server.wait_line("it is started again now")
    begin = time.monotonic()
    server.send(number)
    code, text = server.finish()
    assert code == 0, text
    assert time.monotonic() - begin < 8
    assert "[front] told to Drain" in text
    assert "did not stop" not in text


def test_a_drain_waits_for_the_restart_until_it_becomes_an_abort(serve: Any) -> None:
    server = serve(front="busy", worker="serve,slow-start", timeouts={"drain": 0.3})
    kill(server.wait_ready()["pids"])
    server.wait_line("it is started again now")
    server.send(signal.SIGTERM)
    code, text = server.finish()
    assert code == 0, text
    assert "aborting them" in text
    assert "[front] told to Abort" in text


def test_a_worker_that_dies_while_draining_is_started_again(serve: Any) -> None:
    server = serve(front="busy")
    pids = server.wait_ready()["pids"]
    server.send(signal.SIGTERM)
    server.wait_line("told to Drain")
    kill(pids)
    assert server.wait_ready()["pids"]["worker-0"] != pids["worker-0"]
    server.send(signal.SIGTERM)
    code, text = server.finish()
    assert code == 0, text
    assert "[front] told to Restarting" in text
    assert "[front] told to Abort" in text


def test_third_signal_kills_during_a_restart(serve: Any) -> None:
    server = serve(front="deaf", worker="serve,mute")
    kill(server.wait_ready()["pids"])
    server.wait_line("it is started again now")
    for line in ("draining", "aborting"):
        server.send(signal.SIGTERM)
        server.wait_line(line)
    server.send(signal.SIGTERM)
    code, text = server.finish()
    assert code == 1
    assert text.endswith("pdv-launch: SIGTERM: killed front, worker-0\n")


def test_the_front_dies_during_a_restart(serve: Any) -> None:
    server = serve(worker="serve,slow-start")
    ready = server.wait_ready()
    kill(ready["pids"])
    server.wait_line("it is started again now")
    kill(ready["pids"], "front")
    code, text = server.finish()
    assert code == 4
    assert "pdv-launch: front was killed by SIGKILL" in text
    assert not Path(ready["run_dir"]).exists()


def test_both_die_at_once(serve: Any) -> None:
    server = serve()
    pids = server.wait_ready()["pids"]
    os.kill(server.process.pid, signal.SIGSTOP)
    kill(pids, "front")
    kill(pids)
    os.kill(server.process.pid, signal.SIGCONT)
    code, text = server.finish()
    assert code == 4
    assert "front was killed by SIGKILL" in text


def test_killing_the_launcher_during_a_restart_leaves_no_process(serve: Any) -> None:
    server = serve(worker="serve,slow-start")
    kill(server.wait_ready()["pids"])
    server.wait_line("it is started again now")
    launcher = psutil.Process(server.process.pid)
    while len(children := launcher.children()) < 2:
        time.sleep(0.005)
    server.process.kill()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    sweep_stale()
