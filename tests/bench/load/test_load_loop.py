"""``bench.load.loop`` against a peer that answers as a test wants it: nothing is lost, nothing that
goes wrong is passed over, and clients that are late say so."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import msgpack
import pytest
import zmq

from bench.load import connection as connection_module
from bench.load import loop as loop_module
from bench.load.connection import Connection
from bench.load.errors import LoadError
from bench.load.lengths import fixed
from bench.load.loop import CLIENTS, Loop
from bench.load.sources import scheduled
from bench.load.trace import Trace
from bench.load.workloads import Ask, Workload
from bench.results.records import Counts, Load

WORKLOAD = Workload([[1, 2], [3, 4, 5]], fixed(4), seed=7)
CLOSED = Load(name="C = 3", kind="closed", concurrency=3)
OPEN = Load(name="100/s", kind="open", rate=100.0)

Message = dict[str, Any]
Answer = Callable[[Message], list[Message]]


class Peer:
    """A ROUTER that answers every ``generate`` with what ``answer`` says, and a ``cancel`` of one
    that has not ended with ``done``."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._ended: set[str] = set()
        self._stop = threading.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self.received: list[Message] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stop.is_set():
            if not self._socket.poll(20):
                continue
            who, frame = self._socket.recv_multipart()
            message = msgpack.unpackb(frame)
            self.received.append(message)
            if message["type"] == "generate":
                answers = self._answer(message)
            elif message["id"] in self._ended:
                answers = []
            else:
                answers = [done(message, "abort")]
            for answer in answers:
                if answer["type"] in ("done", "error"):
                    self._ended.add(answer["id"])
                self._socket.send_multipart([who, msgpack.packb(answer)])

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close(linger=0)
        self._context.term()


def tokens(request: Message, offset: int, count: int) -> Message:
    ids = list(range(offset, offset + count))
    drafted = [number % 2 for number in ids]
    return {"type": "tokens", "id": request["id"], "offset": offset, "ids": ids, "drafted": drafted}


def done(request: Message, finish: str = "length") -> Message:
    speculation = {"cycles": 2, "drafted": 4, "accepted": 2, "accepted_per_pos": [2]}
    return {"type": "done", "id": request["id"], "finish": finish, "speculation": speculation}


def error(request: Message, code: str) -> Message:
    return {"type": "error", "id": request["id"], "code": code, "message": "so it is"}


def whole(request: Message) -> list[Message]:
    return [{"type": "accepted"}, tokens(request, 0, 3), tokens(request, 3, 1), done(request)]


@pytest.fixture
def peer() -> Iterator[Callable[[Answer], Peer]]:
    with ExitStack() as stack:
        yield lambda answer: stack.enter_context(Peer(answer))


def test_what_is_open_at_the_end_is_cut_off(peer: Callable[[Answer], Peer]) -> None:
    server = peer(lambda request: [tokens(request, 0, 2)])
    with Loop(server.endpoint) as loop:
        window = loop.run(WORKLOAD, CLOSED, block=1, ramp=0.0, seconds=0.2, timelines=True)
    assert window.counts == Counts(offered=3, cut_off=3)
    assert window.tokens == 6
    assert [record.client for record in window.records] == [0, 1, 2]
    for record in window.records:
        assert (record.cut_off, record.finish, record.error) == (True, "abort", None)
        assert (record.ids, record.drafted) == ([0, 1], [0, 1])
        assert record.ended_ns >= window.window_ns
        assert record.arrival_ns == record.sent_ns
        assert record.speculation is not None
    asked = [m for m in server.received if m["type"] == "generate"]
    assert [m["prompt_ids"] for m in asked] == [WORKLOAD.prompts[r.prompt] for r in window.records]
    assert all(m["timeline"] and m["ignore_eos"] and m["max_tokens"] == 4 for m in asked)
    assert window.lateness_ms is None
    assert window.invalid is None
    assert set(window.uses) == {CLIENTS}


def test_a_closed_loop_sends_the_next_when_one_has_ended(peer: Callable[[Answer], Peer]) -> None:
    with Loop(peer(whole).endpoint) as loop:
        window = loop.run(WORKLOAD, CLOSED, block=1, ramp=0.05, seconds=0.2)
    assert window.counts.completed > 20
    assert window.counts.refused == window.counts.failed == 0
    for client in range(3):
        records = [record for record in window.records if record.client == client]
        asks = itertools.islice(WORKLOAD.asks(1, CLOSED, client), len(records))
        assert [Ask(r.prompt, r.max_tokens, r.seed) for r in records] == list(asks)
        for record, following in itertools.pairwise(records):
            assert record.ended_ns <= following.sent_ns
            assert record.ids == [0, 1, 2, 3]
    assert min(record.arrival_ns for record in window.records) < 0


def test_an_open_loop_counts_what_a_closed_one_cannot_have(peer: Callable[[Answer], Peer]) -> None:
    codes = itertools.cycle(["", "queue_full", "draining", "internal"])

    def answer(request: Message) -> list[Message]:
        code = next(codes)
        return [error(request, code)] if code else whole(request)

    server = peer(answer)
    with Loop(server.endpoint) as loop:
        window = loop.run(WORKLOAD, OPEN, block=1, ramp=0.0, seconds=0.4)
        counts = window.counts
        assert counts.offered == len(window.records) > 20
        assert abs(counts.refused - 2 * counts.completed) <= 2
        assert abs(counts.failed - counts.completed) <= 1
        assert {record.error for record in window.records if record.finish is None} == {
            "queue_full",
            "draining",
            "internal",
        }
        with pytest.raises(LoadError, match="queue_full: so it is"):
            loop.run(WORKLOAD, CLOSED, block=1, ramp=0.0, seconds=5.0)


def test_arrivals_are_the_same_whoever_serves(peer: Callable[[Answer], Peer]) -> None:
    def served(answer: Answer) -> list[tuple[int, ...]]:
        with Loop(peer(answer).endpoint) as loop:
            window = loop.run(WORKLOAD, OPEN, block=5, ramp=0.1, seconds=0.3)
        assert all(record.sent_ns >= record.arrival_ns for record in window.records)
        return [(r.arrival_ns, r.prompt, r.max_tokens, r.seed) for r in window.records]

    fast = served(whole)
    assert fast == served(lambda request: [])
    assert len(fast) > 20
    assert fast == sorted(fast)
    assert -100_000_000 <= fast[0][0] < fast[-1][0] < 300_000_000


def test_a_trace_is_replayed_in_time(peer: Callable[[Answer], Peer]) -> None:
    asks = [Ask(number, number + 1, 0) for number in range(3)]
    trace = Trace([0.0, 0.15, 9.0], [[1], [2, 3], [4]], asks)
    load = Load(name="trace", kind="trace", trace="x.jsonl")
    with Loop(peer(lambda request: [tokens(request, 0, 1)]).endpoint) as loop:
        window = loop.run(trace, load, block=1, ramp=0.1, seconds=0.2)
        for work, wrong in ((trace, CLOSED), (WORKLOAD, load)):
            with pytest.raises(ValueError, match="trace"):
                loop.run(work, wrong, block=1, ramp=0.0, seconds=0.1)
    assert [record.arrival_ns for record in window.records] == [-100_000_000, 50_000_000]
    assert [record.prompt_tokens for record in window.records] == [1, 2]
    assert [record.max_tokens for record in window.records] == [1, 2]
    assert window.lateness_ms is not None


def test_clients_that_are_late_make_the_window_invalid(
    peer: Callable[[Answer], Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    late, send = 0.02, Connection.send

    def send_late(self: Connection, frame: bytes) -> int:
        time.sleep(late)
        return send(self, frame)

    monkeypatch.setattr(Connection, "send", send_late)
    load = Load(name="20/s", kind="open", rate=20.0)
    with Loop(peer(whole).endpoint) as loop:
        window = loop.run(WORKLOAD, load, block=1, ramp=0.1, seconds=0.6)
        closed = loop.run(WORKLOAD, CLOSED, block=1, ramp=0.0, seconds=0.1)
    times = [
        at - 0.1
        for at, _ in itertools.takewhile(lambda x: x[0] < 0.7, scheduled(WORKLOAD, load, 1))
    ]
    assert [record.arrival_ns / 1e9 for record in window.records] == pytest.approx(times)
    assert window.lateness_ms is not None
    assert window.lateness_ms >= late * 1000
    assert window.invalid is not None
    assert "late" in window.invalid
    # Nothing of it is hidden: latencies count from the arrival.
    for record in window.records:
        if record.events:
            assert record.events[0][0] - record.arrival_ns >= late * 1e9
    assert closed.invalid is None  # has no schedule


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda r: [tokens(r, 1, 2)], "tokens 0 to 1 were lost"),
        (lambda r: [tokens(r, 0, 2), tokens(r, 1, 2)], "tokens 2 to 1 were lost"),
        (lambda r: [*whole(r), done(r)], "done came for request 1, which is not open"),
        (lambda r: [{**error(r, "too_large"), "id": None}], "too_large: so it is"),
        (
            lambda r: [{"type": "alive", "instance": "x", "connection": n} for n in (1, 2)],
            "forgotten",
        ),
    ],
)
def test_what_must_not_be_ends_every_load(
    peer: Callable[[Answer], Peer], answer: Answer, said: str
) -> None:
    with Loop(peer(answer).endpoint) as loop, pytest.raises(LoadError, match=said):
        loop.run(WORKLOAD, OPEN, block=1, ramp=0.0, seconds=5.0)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda r: [tokens(r, 0, 2), done(r)], "ended with length after 2 of 4 tokens"),
        (lambda r: [done(r, "abort")], "ended with abort after 0 of 4 tokens"),
        (lambda r: [error(r, "too_large")], "too_large: so it is"),
    ],
)
def test_a_closed_loop_needs_all_its_clients(
    peer: Callable[[Answer], Peer], answer: Answer, said: str
) -> None:
    with Loop(peer(answer).endpoint) as loop, pytest.raises(LoadError, match=said):
        loop.run(WORKLOAD, CLOSED, block=1, ramp=0.0, seconds=5.0)


def test_a_server_that_is_silent_or_gone_is_said(
    peer: Callable[[Answer], Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "SILENCE_SECONDS", 0.1)
    endpoint = peer(lambda request: []).endpoint
    with Loop(endpoint) as loop, pytest.raises(LoadError, match="said nothing"):
        loop.run(WORKLOAD, CLOSED, block=1, ramp=0.0, seconds=5.0)
    with (
        Loop(endpoint, is_running=lambda: False) as loop,
        pytest.raises(LoadError, match="the server has ended"),
    ):
        loop.run(WORKLOAD, CLOSED, block=1, ramp=0.0, seconds=5.0)


def test_requests_that_do_not_end_when_cancelled_are_said(
    peer: Callable[[Answer], Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "DRAIN_SECONDS", 0.1)
    monkeypatch.setattr(Connection, "cancel", lambda self, ids: None)
    with (
        Loop(peer(lambda request: []).endpoint) as loop,
        pytest.raises(LoadError, match=r"have not ended after 0\.1 s"),
    ):
        loop.run(WORKLOAD, CLOSED, block=1, ramp=0.0, seconds=0.1)


def test_garbage_is_not_collected_while_a_window_lasts(peer: Callable[[Answer], Peer]) -> None:
    enabled: list[bool] = []

    def answer(request: Message) -> list[Message]:
        enabled.append(gc.isenabled())
        return []

    with Loop(peer(answer).endpoint) as loop:
        loop.run(WORKLOAD, CLOSED, block=1, ramp=0.0, seconds=0.1)
    assert enabled == [False] * 3
    assert gc.isenabled()


@pytest.mark.parametrize(
    "load",
    [
        Load(name="x", kind="closed"),
        Load(name="x", kind="open"),
        Load(name="x", kind="open", rate=0.0),
        Load(name="x", kind="open", rate=1.0, burstiness=0.0),
    ],
)
def test_a_load_that_lacks_something_is_refused(peer: Callable[[Answer], Peer], load: Load) -> None:
    with Loop(peer(whole).endpoint) as loop, pytest.raises(ValueError, match="load x has no"):
        loop.run(WORKLOAD, load, block=1, ramp=0.0, seconds=1.0)
