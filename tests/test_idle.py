"""A server without requests leaves the processor to others, unless it is told to spin."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
from server_load import load
from server_process import ServerProcess

Start = Callable[..., ServerProcess]

SECONDS = 4.0
"""Long enough for the supervisor to have asked everybody for a sign of life."""


def cpu_seconds(pids: list[int]) -> float:
    """Processor time of all threads of these processes; exact, unlike that of their clock ticks."""
    return sum(
        int(path.read_text().split()[0]) / 1e9
        for pid in pids
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat")
    )


def settled(server: ServerProcess) -> list[int]:
    """The process ids of a server that has served a request and is idle."""
    with load(server) as client:
        client.generate("a", prompt_ids=[20, 21], max_tokens=40, ignore_eos=True)
        client.until_all_ended()
    pids = list(server.pids.values())
    used = cpu_seconds(pids)
    for _ in range(100):  # until what follows a request, or its client's leaving, has been done
        time.sleep(0.1)
        before, used = used, cpu_seconds(pids)
        if used - before < 0.01:
            break
    return pids


def test_idle_processes_use_next_to_nothing(start_server: Start) -> None:
    server = start_server("--topology", "pdv")
    pids = settled(server)
    assert len(pids) == 1 + len(psutil.Process(server.pid).children())
    used, started = cpu_seconds(pids), time.monotonic()
    time.sleep(SECONDS)
    share = (cpu_seconds(pids) - used) / (time.monotonic() - started)
    assert share < 0.02
    assert server.stop().code == 0


def test_spinning_is_what_burns(start_server: Start) -> None:
    """The workers and lanes do; the front and the pools have nothing to hurry for."""
    server = start_server("--topology", "pdv", "--wait", "spin", "--wait-interval-us", "0")
    with load(server) as client:
        client.generate("a", prompt_ids=[20, 21], max_tokens=40, ignore_eos=True)
        client.until_all_ended()
    spinning = {"prefill-0", "draft-0", "verify-0"}
    used = {name: cpu_seconds([pid]) for name, pid in server.pids.items()}
    deadline = time.monotonic() + 60.0
    waiting = set(spinning)
    while waiting and time.monotonic() < deadline:  # each gets its turns even of a busy machine
        time.sleep(0.1)
        waiting = {name for name in waiting if cpu_seconds([server.pids[name]]) - used[name] < 1.0}
    assert not waiting
    others = set(server.pids) - spinning
    assert sum(cpu_seconds([server.pids[name]]) - used[name] for name in others) < 1.0
    assert server.stop().code == 0
