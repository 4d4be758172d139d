"""``bench.load`` and a real server: closed loop, open loop and trace, and servers that die."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from server_process import ServerProcess
from tiny_model import VOCABULARY

from bench.load.connection import Connection
from bench.load.errors import LoadError
from bench.load.lengths import around, fixed
from bench.load.loop import CLIENTS, Loop
from bench.load.trace import Trace
from bench.load.workloads import Ask, Workload
from bench.results.records import Load, RequestRecord

PROMPTS = [
    [(7 * number + step) % (VOCABULARY - 1) + 1 for step in range(12)] for number in range(9)
]
CLOSED = Load(name="C = 3", kind="closed", concurrency=3)


def check(records: list[RequestRecord]) -> None:
    """What the records of any window must keep."""
    for record in records:
        assert record.arrival_ns <= record.sent_ns <= record.ended_ns
        assert len(record.ids) == len(record.drafted) == sum(n for _, n in record.events)
        assert [at for at, _ in record.events] == sorted(at for at, _ in record.events)
        assert record.speculation is not None
        assert record.usage is not None
        assert record.usage["prompt_tokens"] == record.prompt_tokens == 12
        if record.finish == "length":
            assert record.usage["completion_tokens"] == len(record.ids) == record.max_tokens
        # The server counts before a cut by max_tokens, and more of a request that was cut off.
        assert sum(record.drafted) <= record.speculation["accepted"]


def test_a_server_is_kept_busy_for_the_window(
    tiny_server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[int, dict[str, Any]]] = []
    receive = Connection.receive

    def listen(self: Connection) -> tuple[dict[str, Any], int] | None:
        received = receive(self)
        if received is not None:
            heard.append((received[1], received[0]))
        return received

    monkeypatch.setattr(Connection, "receive", listen)
    workload = Workload(PROMPTS, around(16))
    with Loop(tiny_server.ipc, tiny_server.pids) as loop:
        window = loop.run(workload, CLOSED, block=1, ramp=0.2, seconds=0.5, timelines=True)
        recount = sum(
            len(message["ids"])
            for at, message in heard
            if message["type"] == "tokens" and window.start_ns <= at < window.end_ns
        )
        again = loop.run(workload, CLOSED, block=1, ramp=0.0, seconds=0.3)
    assert window.tokens == recount > 0
    assert again.tokens > 0
    assert window.seconds == 0.5
    assert window.counts.offered == len(window.present)
    assert window.counts.cut_off == sum(record.cut_off for record in window.records) <= 3
    assert window.counts.completed > 0
    assert window.counts.refused == window.counts.failed == 0
    assert set(window.uses) == {*tiny_server.pids, CLIENTS}
    for use in window.uses.values():
        assert 0 <= use.cores < 3
        assert use.rss_bytes > 2**20
        assert use.pss_bytes is None or 0 < use.pss_bytes <= use.rss_bytes
    assert window.uses["worker-0"].cores > 0
    assert window.uses["worker-0"].voluntary_switches > 0
    assert window.host_load is not None
    for client in range(3):
        records = [record for record in window.records if record.client == client]
        asks = itertools.islice(workload.asks(1, CLOSED, client), len(records))
        assert [Ask(r.prompt, r.max_tokens, r.seed) for r in records] == list(asks)
    check(window.records)
    assert all(record.timeline for record in window.present)
    assert sum(sum(record.drafted) for record in window.records) > 0
    assert again.records[0].timeline is None


def test_an_open_loop_and_a_trace(tiny_server: ServerProcess) -> None:
    load = Load(name="40/s", kind="open", rate=40.0, burstiness=0.5)
    workload = Workload(PROMPTS, around(16))
    trace = Trace([0.0, 0.1, 0.1, 0.3], PROMPTS, [Ask(n, 5, n) for n in range(4)])
    replay = Load(name="replay", kind="trace", trace="t.jsonl")
    with Loop(tiny_server.ipc, tiny_server.pids) as loop:
        window = loop.run(workload, load, block=2, ramp=0.2, seconds=0.6)
        again = loop.run(workload, load, block=2, ramp=0.2, seconds=0.6)
        replayed = loop.run(trace, replay, block=1, ramp=0.05, seconds=0.6)
    assert [r.arrival_ns for r in window.records] == [r.arrival_ns for r in again.records]
    assert len(window.records) > 8
    assert window.counts.completed > 0
    assert window.counts.refused == window.counts.failed == 0
    assert window.lateness_ms is not None
    check([*window.records, *replayed.records])
    assert [r.arrival_ns for r in replayed.records] == [
        -50_000_000,
        50_000_000,
        50_000_000,
        250_000_000,
    ]
    assert [len(record.ids) for record in replayed.records] == [5] * 4
    # Greedy text is the same whenever it is asked for.
    first = {(r.prompt, r.max_tokens): r.ids for r in window.records if r.finish == "length"}
    for r in again.records:
        if r.finish == "length" and (r.prompt, r.max_tokens) in first:
            assert r.ids == first[r.prompt, r.max_tokens]


def test_what_the_server_cannot_serve(tiny_server: ServerProcess) -> None:
    workload = Workload([[VOCABULARY]], fixed(4))
    with Loop(tiny_server.ipc) as loop, pytest.raises(LoadError, match="bad_request"):
        loop.run(workload, CLOSED, block=0, ramp=0, seconds=5)
    with Loop(tiny_server.ipc) as loop:
        window = loop.run(
            workload, Load(name="x", kind="open", rate=50.0), block=0, ramp=0, seconds=0.2
        )
    assert window.counts.failed == window.counts.offered > 0
    assert {record.error for record in window.records} == {"bad_request"}


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("worker-0", CLOSED),
        pytest.param(
            "front", Load(name="x", kind="open", rate=30.0), marks=pytest.mark.slow, id="front"
        ),
    ],
)
def test_a_death_is_no_window(
    start_server: Callable[..., ServerProcess], name: str, load: Load
) -> None:
    server = start_server()
    pids = server.pids

    def running() -> bool:
        return server.process.poll() is None

    killer = threading.Timer(0.3, lambda: os.kill(pids[name], signal.SIGKILL))
    killer.start()
    began = time.monotonic()
    with Loop(server.ipc, pids, running) as loop, pytest.raises(LoadError, match="has ended"):
        loop.run(Workload(PROMPTS, around(64)), load, block=0, ramp=0, seconds=1.5)
    killer.join()
    assert time.monotonic() - began < 30
