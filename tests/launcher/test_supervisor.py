"""The supervisor over fake children: real processes and signals, no models."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_one_signal_drains_and_stops(serve: Any, number: signal.Signals) -> None:
    server = serve()
    ready = server.wait_ready()
    generations = {"front": 0, "worker-0": 0}
    assert ready["facts"] == {
        name: {"fact": name, "generations": generations} for name in ("front", "worker-0")
    }
    run_dir = Path(ready["run_dir"])
    assert run_dir.stat().st_mode & 0o777 == 0o700
    server.send(number)
    code, text = server.finish()
    assert code == 0
    order = [line for line in text.splitlines() if line.startswith("[front]")]
    assert order == ["[front] told to Drain", "[front] told to Stop"]
    assert "[worker-0] told to Stop" in text
    assert not run_dir.exists()
    assert not any(psutil.pid_exists(pid) for pid in ready["pids"].values())


def test_a_signal_to_the_whole_group_reaches_only_the_supervisor(serve: Any) -> None:
    server = serve()
    pids = server.wait_ready()["pids"]
    for pid in pids.values():
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    server.send(signal.SIGINT)
    code, text = server.finish()
    assert code == 0, text
    assert "told to Drain" in text


def test_nohup_is_respected(serve: Any) -> None:
    server = serve(wrapper=["nohup"])
    server.wait_ready()
    server.send(signal.SIGHUP)
    server.send(signal.SIGTERM)
    code, text = server.finish()
    assert code == 0
    assert "SIGTERM: draining" in text
    assert "SIGHUP" not in text


def test_second_signal_aborts_requests_that_are_still_open(serve: Any) -> None:
    server = serve(front="busy")
    server.wait_ready()
    server.send(signal.SIGTERM)
    server.wait_line("told to Drain")
    server.send(signal.SIGTERM)
    code, text = server.finish()
    assert code == 0
    assert "aborting open requests" in text
    assert "[front] told to Abort" in text


def test_drain_that_takes_too_long_becomes_an_abort(serve: Any) -> None:
    server = serve(front="busy", timeouts={"drain": 0.2})
    server.wait_ready()
    server.send(signal.SIGTERM)
    code, text = server.finish()
    assert code == 0
    assert "requests are still open after 0.2 s; aborting them" in text
    assert "[front] told to Abort" in text


def test_children_that_do_not_stop_are_killed_and_named(serve: Any) -> None:
    server = serve(worker="deaf", timeouts={"stop": 0.3})
    pids = server.wait_ready()["pids"]
    server.send(signal.SIGTERM)
    code, text = server.finish()
    assert code == 1
    assert "pdv-launch: worker-0 did not stop and was killed" in text
    assert not psutil.pid_exists(pids["worker-0"])


def test_front_that_does_not_answer_at_all_is_bounded(serve: Any) -> None:
    server = serve(front="deaf", timeouts={"drain": 0.1, "abort": 0.1, "stop": 0.1})
    server.wait_ready()
    server.send(signal.SIGTERM)
    code, text = server.finish()
    assert code == 1
    assert "front did not stop and was killed" in text


def test_third_signal_kills(serve: Any) -> None:
    server = serve(front="deaf", worker="deaf")
    pids = server.wait_ready()["pids"]
    for line in ("draining", "aborting"):
        server.send(signal.SIGTERM)
        server.wait_line(line)
    server.send(signal.SIGTERM)
    code, text = server.finish()
    assert code == 1
    assert text == "pdv-launch: SIGTERM: killed front, worker-0\n"
    assert not any(psutil.pid_exists(pid) for pid in pids.values())


@pytest.mark.parametrize("when", ["serving", "starting"])
def test_killed_launcher_leaves_no_process(serve: Any, when: str) -> None:
    server = serve(worker="serve" if when == "serving" else "slow-start")
    if when == "serving":
        children = [psutil.Process(pid) for pid in server.wait_ready()["pids"].values()]
    else:
        launcher = psutil.Process(server.process.pid)
        while len(children := launcher.children()) < 2:
            time.sleep(0.005)
    server.process.kill()
    # A child that has not even begun to run Python finds out when it does.
    gone, alive = psutil.wait_procs(children, timeout=2 if when == "serving" else 15)
    assert len(gone) == 2
    assert not alive
    sweep()


def sweep() -> None:
    from launcher.run_directory import sweep_stale

    sweep_stale()


def test_child_that_reports_a_failure_ends_the_launch_with_its_message(serve: Any) -> None:
    server = serve(worker="fail")
    code, text = server.finish()
    assert code == 3
    assert "pdv-launch: worker-0 could not start: there is no disk left" in text
    assert server.stdout.read() == ""


def test_child_that_dies_before_it_is_ready_ends_the_launch_with_its_last_lines(serve: Any) -> None:
    server = serve(worker="crash")
    code, text = server.finish()
    assert code == 3
    assert "worker-0 exited with status 7 before it was ready" in text
    assert text.endswith("\n  the roof is on fire\n")


def test_start_up_without_progress_times_out_and_names_the_last_sign_of_life(serve: Any) -> None:
    server = serve(worker="slow-start", timeouts={"start": 1.5, "failed_stop": 0.2})
    code, text = server.finish()
    assert code == 3
    assert "nothing happened for 1.5 s of starting" in text
    assert "worker-0: counting to infinity" in text or "front: ready" in text


def test_signal_before_ready_stops_cleanly(serve: Any) -> None:
    server = serve(worker="mute", timeouts={"failed_stop": 0.2})
    launcher = psutil.Process(server.process.pid)
    while len(launcher.children()) < 2:
        time.sleep(0.005)
    server.send(signal.SIGTERM)
    code, text = server.finish()
    assert code == 0
    assert "SIGTERM before the server was ready; stopping" in text


@pytest.mark.parametrize(("victim", "told"), [("worker-0", True), ("front", False)])
def test_process_that_dies_while_serving_ends_the_server(
    serve: Any, victim: str, told: bool
) -> None:
    server = serve(restarts={"max_restarts": 0})
    ready = server.wait_ready()
    os.kill(ready["pids"][victim], signal.SIGKILL)
    code, text = server.finish()
    assert code == 4
    assert f"pdv-launch: {victim} was killed by SIGKILL" in text
    assert ("[front] told to Lost" in text) is told
    assert not Path(ready["run_dir"]).exists()


def test_front_that_cannot_say_goodbye_after_a_death_is_bounded(serve: Any) -> None:
    server = serve(
        front="deaf",
        timeouts={"lost": 0.2, "failed_stop": 0.2},
        restarts={"max_restarts": 0},
    )
    ready = server.wait_ready()
    os.kill(ready["pids"]["worker-0"], signal.SIGKILL)
    code, text = server.finish()
    assert code == 4
    assert "worker-0 was killed by SIGKILL" in text


def test_bad_exit_status_after_stop_is_a_failure(serve: Any) -> None:
    server = serve(worker="bad-exit")
    server.wait_ready()
    server.send(signal.SIGTERM)
    code, text = server.finish()
    assert code == 1
    assert "worker-0 exited with status 9 when told to stop" in text


def test_closing_the_parents_pipe_aborts_the_server(serve: Any) -> None:
    reader, writer = os.pipe()
    server = serve(front="busy", parent_fd=reader)
    os.close(reader)
    server.wait_ready()
    os.close(writer)
    code, text = server.finish()
    assert code == 0
    assert "[front] told to Abort" in text
    assert "told to Drain" not in text
