"""``bench.closed_loop``: the same requests for all servers, every token of the window counted."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable

import pytest
from server_process import ServerProcess
from tiny_model import VOCABULARY

from bench.closed_loop import Ask, ClosedLoop, LoadError, Record, Window, Workload

PROMPTS = [
    [(7 * number + step) % (VOCABULARY - 1) + 1 for step in range(12)] for number in range(9)
]


def first_asks(workload: Workload, block: int, clients: int, count: int = 20) -> list[list[Ask]]:
    return [
        list(itertools.islice(workload.asks(block, clients, client), count))
        for client in range(clients)
    ]


def test_requests_depend_on_the_seed_and_the_place_alone() -> None:
    workload = Workload(PROMPTS, 16, seed=3)
    asked = first_asks(workload, 1, 4)
    assert asked == first_asks(Workload(PROMPTS, 16, seed=3), 1, 4)
    others = [first_asks(workload, 2, 4), first_asks(Workload(PROMPTS, 16, seed=4), 1, 4)]
    assert all(asked != other for other in others)
    assert len({tuple(client) for client in asked}) == 4
    for requests in asked:
        assert all(4 <= ask.max_tokens <= 28 for ask in requests)
        assert all(0 <= ask.prompt < len(PROMPTS) for ask in requests)


def record(number: int, events: list[tuple[int, int]], ended: int | None) -> Record:
    return Record(str(number), number, Ask(0, 9, 0), 0, events, ended)


def test_a_window_counts_what_arrives_in_it_and_nothing_else() -> None:
    records = [
        record(0, [(50, 1), (100, 2), (150, 4)], 150),  # began in the ramp
        record(1, [(160, 8), (199, 16), (200, 32)], 210),  # cut off at the end
        record(2, [(20, 64)], 90),  # over before
        record(3, [], 220),  # waited all the time
    ]
    window = Window(4, 100, 200, records, 0.0, 0.0)
    assert window.tokens == 2 + 4 + 8 + 16
    assert [item.id for item in window.present] == ["0", "1", "3"]
    assert window.seconds == 1e-7
    rows = list(window.rows())
    assert rows[0]["events"] == [[-50, 1], [0, 2], [50, 4]]
    assert rows[0]["first_token_ns"] == -50
    assert rows[3]["first_token_ns"] is None


def test_a_server_is_kept_busy_for_the_window(tiny_server: ServerProcess) -> None:
    workload = Workload(PROMPTS, 16)
    pids = list(tiny_server.pids.values())
    with ClosedLoop(tiny_server.ipc, pids) as loop:
        window = loop.run(workload, 3, block=1, ramp=0.2, seconds=0.5, timelines=True)
        again = loop.run(workload, 3, block=1, ramp=0.0, seconds=0.3)
    assert window.tokens > 0
    assert again.tokens > 0
    assert window.seconds == 0.5
    assert 0 < window.client_cpu < 1.5
    assert window.server_cpu > 0
    for client in range(3):
        of_client = [item for item in window.records if item.client == client]
        expected = itertools.islice(workload.asks(1, 3, client), len(of_client))
        assert [item.ask for item in of_client] == list(expected)
        for item, following in itertools.pairwise(of_client):
            assert item.received == item.ask.max_tokens
            assert item.ended_ns is not None
            assert item.ended_ns <= following.arrival_ns
    for item in window.present:
        assert "timeline" in item.done
        assert item.done["usage"]["completion_tokens"] == item.received or (
            item.done["finish"] == "abort"
        )
    assert {item.done["finish"] for item in window.present} <= {"length", "abort"}
    assert "timeline" not in again.records[0].done


def test_what_the_server_refuses_is_no_window(tiny_server: ServerProcess) -> None:
    with ClosedLoop(tiny_server.ipc) as loop, pytest.raises(LoadError, match="bad_request"):
        loop.run(Workload([[VOCABULARY]], 4), 1, block=0, ramp=0, seconds=5)


@pytest.mark.parametrize("name", ["worker-0", "front"])
def test_a_death_is_no_window(start_server: Callable[..., ServerProcess], name: str) -> None:
    server = start_server()
    pids = server.pids

    def running() -> bool:
        return server.process.poll() is None

    killer = threading.Timer(0.5, lambda: os.kill(pids[name], signal.SIGKILL))
    killer.start()
    began = time.monotonic()
    with (
        ClosedLoop(server.ipc, list(pids.values()), running) as loop,
        pytest.raises(LoadError, match="has ended"),
    ):
        loop.run(Workload(PROMPTS, 64), 2, block=0, ramp=0, seconds=3)
    killer.join()
    assert time.monotonic() - began < 30
