"""Sustained load through the gateway, with cancels, disconnects and deaths: no wrong token, no
leak, and memory that stays as it is."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import time
from collections.abc import Callable
from typing import Any

import httpx
import psutil
import pytest
from gateway_process import wait_idle
from http_load_clients import LoadClients
from server_process import ServerProcess

Start = Callable[..., ServerProcess]

CLIENTS = 64
MOST_GROWTH_BYTES = 16 * 2**20
SETTLING = 0.35
"""Share of the run in which buffers and caches may still grow."""


def bodies() -> list[dict[str, Any]]:
    generator = random.Random(4)
    return [
        {
            "prompt": [generator.randrange(5, 290) for _ in range(generator.randrange(2, 40))],
            "max_tokens": generator.randrange(4, 60),
            "temperature": generator.choice((0, 1.0)),
            "seed": number,
            "ignore_eos": True,
        }
        for number in range(24)
    ]


async def kill_workers(server: ServerProcess, every: float, seconds: float) -> int:
    """Kill a process of the engine now and then, of those that are there; how many."""
    generator, killed, end = random.Random(7), 0, time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=server.ready["http"], timeout=60) as http:
        while time.monotonic() + every < end:
            await asyncio.sleep(every)
            processes = (await http.get("/server_info")).json()["processes"]
            workers = sorted(processes.keys() - {"front", "pools", "gateway", "launcher"})
            os.kill(processes[generator.choice(workers)], signal.SIGKILL)
            killed += 1
            while (await http.get("/health")).status_code != 200:
                await asyncio.sleep(0.05)
    return killed


async def sample(pid: int, seconds: float, found: list[int]) -> None:
    """The memory of a process, ten times a second."""
    process, end = psutil.Process(pid), time.monotonic() + seconds
    while time.monotonic() < end:
        found.append(process.memory_info().rss)
        await asyncio.sleep(0.1)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("seconds", "every", "topology"),
    [(30.0, 10.0, "unified"), pytest.param(300.0, 30.0, "pdv", marks=pytest.mark.slow)],
)
def test_no_wrong_token_and_nothing_left(
    seconds: float,
    every: float,
    topology: str,
    start_server: Start,
    report_line: Callable[[str], None],
) -> None:
    options = ["--http-port", "0", "--topology", topology, "--max-restarts", "1000"]
    server = start_server(*options)
    url = server.ready["http"]
    wanted = bodies()
    with httpx.Client(base_url=url, timeout=120) as http:
        expected = [
            http.post("/v1/completions", json=body).json()["choices"][0]["text"] for body in wanted
        ]
        memory: list[int] = []
        clients = LoadClients(url, wanted, expected, CLIENTS)

        async def beside() -> int:
            killing = kill_workers(server, every, seconds)
            killed, _ = await asyncio.gather(
                killing, sample(server.pids["gateway"], seconds, memory)
            )
            return killed

        tally = asyncio.run(clients.run(seconds, beside()))
        wait_idle(http)
        info = http.get("/server_info").json()
        process = psutil.Process(server.pids["gateway"])
        for _ in range(200):
            left = [c for c in process.net_connections() if c.status == psutil.CONN_ESTABLISHED]
            if len(left) <= 1:  # our own
                break
            time.sleep(0.05)
    assert tally.wrong == []
    assert tally.ends["whole"] > 0
    assert tally.ends["left"] > 0
    assert set(tally.ends) <= {"whole", "left"}, tally.ends
    assert len(left) <= 1
    assert info["gateway"]["open_calls"] == 0
    assert info["pools"]["blocks_in_use"] == info["pools"]["slots_in_use"] == 0
    assert info["counters"]["restarts"] >= 1
    settled = memory[int(SETTLING * len(memory)) :]
    half = len(settled) // 2
    first, last = statistics.median(settled[:half]), statistics.median(settled[half:])
    report_line(
        f"gateway under load, {topology}: {dict(tally.ends)} in {seconds:g} s, "
        f"{info['counters']['restarts']} restarts, {first / 2**20:.1f} MiB and then "
        f"{last / 2**20:.1f} MiB"
    )
    assert last < first + MOST_GROWTH_BYTES
    assert server.stop().code == 0
