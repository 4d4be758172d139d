"""Processes that live and do not answer: the real supervisor over fake children."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

SECONDS = 3.0
"""Of silence until a process is killed here; a busy machine keeps the others silent for less."""


def stop(pids: dict[str, int], name: str) -> None:
    os.kill(pids[name], signal.SIGSTOP)


def test_a_hung_worker_is_killed_and_started_again_with_its_replica(serve: Any) -> None:
    server = serve(topology="pd", timeouts={"answer": SECONDS})
    first = server.wait_ready()["pids"]
    stop(first, "decode-0")
    second = server.wait_restarts(2)["pids"]
    assert {name for name in first if first[name] != second[name]} == {"prefill-0", "decode-0"}
    server.send(signal.SIGTERM)
    code, text = server.finish()
    assert code == 0, text
    assert (
        "pdv-launch: decode-0 did not answer for 3 s and was killed; it is started again now "
        "together with prefill-0 (restart 1 of at most 10 within 600 s)\n"
    ) in text
    assert "[front] told to Restarting decode-0 1 9" in text
    assert text.count("told to Restarting") == 1


def test_a_hung_front_ends_the_server(serve: Any) -> None:
    server = serve(timeouts={"answer": SECONDS})
    ready = server.wait_ready()
    stop(ready["pids"], "front")
    code, text = server.finish()
    assert code == 4
    assert text.endswith("pdv-launch: front did not answer for 3 s and was killed\n")
    assert not Path(ready["run_dir"]).exists()


def test_beyond_the_budget_a_hang_ends_the_server(serve: Any) -> None:
    server = serve(timeouts={"answer": SECONDS}, restarts={"max_restarts": 0})
    stop(server.wait_ready()["pids"], "worker-0")
    code, text = server.finish()
    assert code == 4
    assert "[front] told to Lost" in text
    assert "worker-0 did not answer for 3 s and was killed\n" in text


def test_a_process_that_is_not_ready_is_not_asked(serve: Any) -> None:
    server = serve(topology="baseline", worker="serve,late-serve", timeouts={"answer": SECONDS})
    pids = server.wait_ready()["pids"]
    os.kill(pids["worker-0"], signal.SIGKILL)
    lines = server.wait_line("[worker-0] late")
    for name in ("worker-1", "worker-2"):  # both silences together are longer than the timeout
        stop(pids, name)
        lines += server.wait_line(f"{name} did not answer for 3 s and was killed")
        pids = server.wait_ready()["pids"]
    assert not any("worker-0 did not answer" in line for line in lines)
    os.kill(pids["worker-0"], signal.SIGCONT)
    assert server.wait_ready()["pids"] == pids
    server.send(signal.SIGTERM)
    code, text = server.finish()
    assert code == 0, text


def test_a_long_step_of_computing_is_no_hang(serve: Any) -> None:
    server = serve(worker="compute", timeouts={"answer": SECONDS})
    server.wait_ready()
    assert not any("did not answer" in line for line in server.wait_line("[worker-0] computed"))
    server.send(signal.SIGTERM)
    code, text = server.finish()
    assert code == 0, text
