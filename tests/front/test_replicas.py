"""Several replicas behind one front: who gets which request, and what one's death means for the
others; the test plays all engines."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, ClassVar

import msgpack
import numpy as np
import pytest
import zmq
from front.front_harness import MAX_MODEL_LEN, Entry, FakeClient, FrontUnderTest

from pdv_mp.front.journal import Journal, Request
from pdv_mp.front.outbox import Connection
from pdv_mp.front.replicas import Replica
from pdv_mp.sampling_params import SamplingParams
from pdv_mp.timeline import Timeline, state_index
from pdv_mp.topology import ROWS
from pdv_mp.wire import control as control_wire
from pdv_mp.wire import engine as wire
from pdv_mp.wire.engine import Finish

MakeFront = Callable[..., FrontUnderTest]
BASELINE = ROWS["baseline"]
PDV = ROWS["pdv"]
REPLICAS = BASELINE.replicas
PROMPT = [5, 6, 7]


@pytest.fixture
def front(make_front: MakeFront) -> FrontUnderTest:
    """A front of four replicas with two credits each."""
    return make_front(credits=2, table=BASELINE).start()


def send_request(client: FakeClient, id: str, **fields: Any) -> None:
    client.send("generate", id=id, **{"prompt_ids": PROMPT, "seed": 1, **fields})
    client.expect("accepted", id=id)


def open_request(
    front: FrontUnderTest, client: FakeClient, id: str, replica: int, **fields: Any
) -> int:
    """Sends a request, which must be opened at this replica; returns its key."""
    send_request(client, id, **fields)
    key: int = front.engines[replica].receive(wire.Open).request
    return key


def opened(front: FrontUnderTest, replica: int, count: int) -> list[int]:
    """Keys of the next requests opened at a replica."""
    return [front.engines[replica].receive(wire.Open).request for _ in range(count)]


def nothing_sent(front: FrontUnderTest, *replicas: int) -> bool:
    return not any(front.engines[replica].socket.poll(30) for replica in replicas)


def ask(front: FrontUnderTest, client: FakeClient, *replicas: int, **info: Any) -> dict[str, Any]:
    """The front's ``info``; the engines of these replicas are asked and answer ``info``."""
    client.send("info")
    for replica in replicas:
        question = front.engines[replica].receive(wire.InfoRequest)
        front.engines[replica].send(wire.InfoReply(number=question.number, info=info))
    return client.expect("info")


def watch(front: FrontUnderTest, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Asks for ``info`` until this is true of it; all engines answer."""
    watcher = front.client()
    while True:
        watcher.send("info")
        while not watcher.socket.poll(1):
            for engine in front.engines:
                if engine.socket.poll(0):
                    message, _ = wire.decode(engine.socket.recv(), 0)
                    if isinstance(message, wire.InfoRequest):
                        engine.send(wire.InfoReply(number=message.number, info={}))
                    else:
                        engine.early.append(message)
        if true(info := watcher.expect("info")):
            return info


def die(front: FrontUnderTest, *batch: int, replica: int, **keywords: int) -> dict[str, Any]:
    """Kills a replica and returns the first ``info`` that knows of it."""
    front.kill_engine(*batch, replica=replica, **keywords)
    died = front.engines[replica].generation
    return watch(front, lambda info: info["replicas"][replica]["restarts"] == died)


def revive(front: FrontUnderTest, replica: int, **facts: Any) -> None:
    """Brings a replica back and waits until the front knows."""
    front.revive_engine(replica, **facts)
    watch(front, lambda info: bool(info["replicas"][replica]["serves"]))


# Who gets which request


def test_a_request_goes_where_the_fewest_are_open(front: FrontUnderTest) -> None:
    client = front.client()
    keys = [open_request(front, client, f"r{n}", n) for n in range(REPLICAS)]
    front.engines[2].emit(Entry(keys[2], [9], finish=Finish.LENGTH))
    assert client.until_last("r2")[1]["finish"] == "length"
    open_request(front, client, "a", 2)
    for n in range(REPLICAS):
        open_request(front, client, f"s{n}", n)
    send_request(client, "w")  # all credits are taken
    send_request(client, "x")
    assert nothing_sent(front, *range(REPLICAS))
    info = ask(front, client, *range(REPLICAS))
    assert info["counters"]["waiting_requests"] == 2
    assert info["counters"]["free_credits"] == 0
    assert info["facts"]["credits"] == 2 * REPLICAS
    front.engines[3].emit(Entry(keys[3], [9], finish=Finish.LENGTH))
    first = front.engines[3].receive(wire.Open).request
    front.engines[1].emit(Entry(keys[1], [9], finish=Finish.LENGTH))
    assert front.engines[1].receive(wire.Open).request == first + 1


def test_a_request_that_is_closing_still_counts(front: FrontUnderTest) -> None:
    client = front.client()
    key = open_request(front, client, "a", 0)
    client.send("cancel", id="a")
    client.expect("done", id="a", finish="abort")
    assert front.engines[0].receive(wire.Close).requests.tolist() == [key]
    assert nothing_sent(front, 1, 2, 3)
    for replica in (1, 2, 3):
        open_request(front, client, f"b{replica}", replica)
    other = open_request(front, client, "c", 0)
    front.engines[0].emit(Entry(key, finish=Finish.ABORT), Entry(other, finish=Finish.LENGTH))
    assert client.until_last("c")[1]["finish"] == "length"
    open_request(front, client, "d", 0)


def test_a_replica_speaks_of_its_own_requests_only(front: FrontUnderTest) -> None:
    client = front.client()
    key = open_request(front, client, "a", 0)
    for finish in (Finish.NONE, Finish.LENGTH):
        front.engines[1].emit(Entry(key, [8], finish=finish))
    ask(front, client, *range(REPLICAS))  # they have arrived
    front.engines[0].emit(Entry(key, [9], finish=Finish.LENGTH))
    tokens, _ = client.until_last("a")
    assert [item["ids"] for item in tokens] == [[9]]
    info = ask(front, client, *range(REPLICAS))
    assert [item["free_credits"] for item in info["replicas"]] == [2] * REPLICAS


# Start


def test_replicas_must_be_alike(make_front: MakeFront) -> None:
    front = make_front(table=BASELINE)
    for replica in range(REPLICAS):
        front.revive_engine(replica, vocab_size=400 + replica // 3)
    front.thread.join(10)
    assert str(front.error) == (
        "worker-3 is not as worker-0, though they are replicas of each other: "
        "vocab_size was 400 and is 401"
    )


def test_the_front_waits_for_all_and_promises_what_each_can_hold(make_front: MakeFront) -> None:
    front = make_front(table=BASELINE)
    for replica in (3, 1, 0):
        front.revive_engine(replica, max_request_tokens=50 - replica, kv_blocks=10 + replica)
    assert not front.supervisor.poll(100)
    front.revive_engine(2, max_request_tokens=60, kv_blocks=12)
    ready = front.expect_control(control_wire.Ready)
    front.endpoint = ready.facts["endpoint"]
    client = front.client()
    client.send("hello")
    assert client.expect("welcome")["limits"]["max_prompt_tokens"] == 46
    info = ask(front, client, *range(REPLICAS))
    assert info["facts"]["max_request_tokens"] == 47
    assert info["facts"]["kv_blocks"] == 46
    assert set(info["processes"]) == {"front", *front.names}
    # A restarted one may have less room than it had, but not less than was promised.
    for room in (47, 46):
        die(front, replica=0)
        if room == 47:
            revive(front, 0, max_request_tokens=room, kv_blocks=10)
        else:
            front.revive_engine(0, max_request_tokens=room)
    front.thread.join(10)
    assert "worker-0 came back as another one: max_request_tokens" in str(front.error)


# One dies


def test_the_others_take_over_what_a_dead_one_had(front: FrontUnderTest) -> None:
    client = front.client()
    keys = [open_request(front, client, f"r{n}", n) for n in range(REPLICAS)]
    second = open_request(front, client, "s0", 0, max_tokens=9)
    front.engines[0].emit(Entry(keys[0], [9, 10]), Entry(second, [11]))
    client.expect("tokens", id="r0", ids=[9, 10])
    client.expect("tokens", id="s0", ids=[11])
    front.kill_engine(replica=0)
    again = [front.engines[replica].receive(wire.Open) for replica in (1, 2)]
    assert [item.request for item in again] == [keys[0], second]
    assert [item.prompt_ids.tolist()[3:] for item in again] == [[9, 10], [11]]
    assert again[1].max_tokens == 8
    front.engines[1].emit(Entry(keys[0], [12], finish=Finish.LENGTH), Entry(keys[1], [20]))
    client.expect("tokens", id="r0", ids=[12], seq=1, offset=2)
    client.expect("done", id="r0")
    client.expect("tokens", id="r1", ids=[20], seq=0)
    open_request(front, client, "t", 1)  # a new one is served meanwhile, by those that are there
    revive(front, 0)
    open_request(front, client, "u", 0)


def test_what_finds_no_credit_waits_in_order(front: FrontUnderTest) -> None:
    client = front.client()
    keys = [open_request(front, client, f"r{n}", n % REPLICAS) for n in range(2 * REPLICAS)]
    send_request(client, "waiting", timeline=True)
    info = die(front, replica=2)
    assert info["counters"]["waiting_requests"] == 3
    assert info["counters"]["free_credits"] == 2
    assert [item["serves"] for item in info["replicas"]] == [True, True, False, True]
    assert info["away"] == ["worker-2"]
    assert set(info["processes"]) == {"front", "worker-0", "worker-1", "worker-3"}
    front.engines[0].emit(Entry(keys[4], [9], finish=Finish.LENGTH))
    assert front.engines[0].receive(wire.Open).request == keys[2]
    front.revive_engine(2)
    assert opened(front, 2, 1) == [keys[6]]
    last = front.engines[2].receive(wire.Open)
    front.engines[2].emit(Entry(last.request, timeline=last.timeline, finish=Finish.LENGTH))
    while (done := client.receive()).get("id") != "waiting":
        pass
    assert "front.restart" not in done["timeline"]["states"]  # it waited for a credit of any
    assert done["timeline"]["states"]["front.queue"]["n"] == 1


def test_time_is_lost_to_a_restart_only_by_those_that_wait_for_it(make_front: MakeFront) -> None:
    front = make_front(credits=1, table=BASELINE).start()
    client = front.client()
    keys = [open_request(front, client, f"r{n}", n, timeline=True) for n in range(REPLICAS)]
    for replica in range(REPLICAS):
        die(front, replica=replica)
    send_request(client, "new", timeline=True)
    front.revive_engine(1)
    states = []
    for key in (*keys, keys[-1] + 1):
        message = front.engines[1].receive(wire.Open)
        assert message.request == key
        entry = Entry(key, [9], timeline=message.timeline, finish=Finish.LENGTH)
        front.engines[1].emit(entry)
        while (done := client.receive())["type"] != "done":
            pass
        timeline = done["timeline"]
        assert sum(state["ns"] for state in timeline["states"].values()) == timeline["e2e_ns"]
        states.append(timeline["states"])
    assert all(state["front.restart"]["n"] >= 1 for state in states)


def test_a_late_message_of_the_dead_is_not_mixed_up_with_the_new(front: FrontUnderTest) -> None:
    client = front.client()
    key = open_request(front, client, "a", 0)
    dead = front.engines[0]
    dead.emit(Entry(key, [9]))
    client.expect("tokens", ids=[9])
    front.kill_engine(replica=0)
    assert opened(front, 1, 1) == [key]
    revive(front, 0)
    for generation in (0, 1):  # of the old generation, and of the new one's old request
        front.engines[0].generation = generation
        front.engines[0].emit(Entry(key, [8], finish=Finish.LENGTH))
    ask(front, client, *range(REPLICAS))
    front.engines[1].emit(Entry(key, [10], finish=Finish.LENGTH))
    client.expect("tokens", ids=[10], seq=1)
    client.expect("done", id="a")


def test_what_was_to_be_closed_at_the_dead_is_not_closed_at_the_new() -> None:
    class Edge:
        lost = False
        sent: ClassVar[list[Any]] = []

        def send(self, message: Any) -> None:
            self.sent.append(message)

    replica = Replica(0, "worker-0", Edge())  # type: ignore[arg-type]
    replica.started({"credits": 3})
    journal = Journal([replica])
    requests = [new_request(journal) for _ in range(3)]
    assert [journal.admit() for _ in requests] == [(replica, request) for request in requests]
    journal.end(requests[0])
    replica.park(requests[1])
    were_there, condemned = journal.restart(replica, (), 9)
    assert (were_there, condemned) == (requests[1:], [])
    assert (replica.num_open, journal.num_waiting) == (0, 2)
    assert journal.admit() is None  # it is not back
    replica.started({"credits": 3})
    assert [journal.admit() for _ in "ab"] == [(replica, request) for request in requests[1:]]
    replica.send_closes()
    assert Edge.sent == []
    assert not requests[1].parking


def new_request(journal: Journal) -> Request:
    request = Request(
        key=journal.new_key(),
        connection=Connection(b"", 1, 1),
        id="",
        prompt_ids=np.array(PROMPT, np.int32),
        params=SamplingParams(),
        stream=True,
        wants_timeline=False,
        output=None,  # type: ignore[arg-type] - nothing is delivered
        timeline=Timeline(state_index("front.queue"), 0),
        arrived_ns=0,
    )
    journal.add(request)
    return request


def test_a_cancel_of_a_carried_request_goes_to_its_new_replica(front: FrontUnderTest) -> None:
    client = front.client()
    key = open_request(front, client, "a", 0)
    front.kill_engine(replica=0)
    assert opened(front, 1, 1) == [key]
    client.send("cancel", id="a")
    client.expect("done", id="a", finish="abort")
    assert front.engines[1].receive(wire.Close).requests.tolist() == [key]
    revive(front, 0)
    assert nothing_sent(front, 0, 2, 3)


def test_one_that_does_not_come_back_ends_all(front: FrontUnderTest) -> None:
    client = front.client()
    open_request(front, client, "a", 0)
    open_request(front, client, "b", 1)
    die(front, replica=1)
    front.order(control_wire.Lost("worker-1"))
    for id in "ab":
        client.expect("error", id=id, code="lane_failed", retryable=True)
    front.expect_control(control_wire.Drained)
    client.send("info")
    assert [item["serves"] for item in client.expect("info")["replicas"]] == [False] * REPLICAS


# Requests that kill their worker


def test_a_suspect_is_alone_on_its_replica_while_the_others_serve(front: FrontUnderTest) -> None:
    client = front.client()
    poison = open_request(front, client, "poison", 0)
    die(front, poison, replica=0)
    assert opened(front, 1, 1) == [poison]  # it goes on elsewhere, beside others
    beside = [open_request(front, client, f"b{n}", n) for n in (2, 3, 1)][-1]
    info = die(front, poison, beside, replica=1)  # both were in the batch, one of them twice
    assert info["replicas"][1]["restarts"] == 1
    assert opened(front, 2, 1) == [beside]
    revive(front, 0)
    open_request(front, client, "c", 0)
    front.revive_engine(1)
    assert opened(front, 1, 1) == [poison]
    # Alone on replica 1, which is the emptiest otherwise.
    open_request(front, client, "d", 0)
    open_request(front, client, "e", 3)
    send_request(client, "f")
    assert nothing_sent(front, *range(REPLICAS))
    front.kill_engine(poison, replica=1)
    error = client.expect("error", id="poison", code="internal", retryable=False)
    assert "worker-0 or worker-1 died 3 times" in error["message"]
    front.engines[2].emit(Entry(beside, [9], finish=Finish.LENGTH))
    client.expect("tokens", ids=[9])
    client.expect("done", finish="length")
    assert len(opened(front, 2, 1)) == 1


def test_a_suspect_that_proves_itself_makes_room_and_goes_on(front: FrontUnderTest) -> None:
    client = front.client()
    keys = [open_request(front, client, f"r{n}", n % REPLICAS) for n in range(2 * REPLICAS)]
    here = [keys[0], keys[4]]
    for _ in range(2):
        die(front, *here, replica=0)
        front.revive_engine(0)
        if _ == 0:
            assert opened(front, 0, 2) == here
    assert opened(front, 0, 1) == here[:1]
    front.engines[0].emit(Entry(here[0], [9]))
    front.engines[0].emit(Entry(here[0], [10]))
    assert front.engines[0].receive(wire.Close).requests.tolist() == here[:1]
    front.engines[1].emit(Entry(keys[1], [9], finish=Finish.LENGTH))
    front.engines[0].emit(Entry(here[0], finish=Finish.ABORT))
    assert opened(front, 0, 1) == here[1:]
    again = front.engines[1].receive(wire.Open)  # cleared, it goes where there is room
    assert again.request == here[0]
    assert again.prompt_ids.tolist() == [*PROMPT, 9, 10]


def test_a_suspect_may_end_while_it_waits(front: FrontUnderTest) -> None:
    client = front.client()
    keys = [open_request(front, client, f"r{n}", n % REPLICAS) for n in range(2 * REPLICAS)]
    die(front, keys[0], replica=0)
    front.revive_engine(0)
    assert opened(front, 0, 2) == [keys[0], keys[4]]
    info = die(front, keys[0], replica=0)
    assert info["counters"]["waiting_requests"] == 2
    client.send("cancel", id="r0")
    client.expect("done", id="r0", finish="abort")
    front.revive_engine(0)
    assert opened(front, 0, 1) == [keys[4]]
    info = ask(front, client, *range(REPLICAS))
    assert info["counters"]["waiting_requests"] == info["counters"]["closing_requests"] == 0


# What is said of it


def test_info_sums_what_the_replicas_say(front: FrontUnderTest) -> None:
    client = front.client()
    open_request(front, client, "a", 0)
    client.send("info")
    for replica, engine in enumerate(front.engines):
        question = engine.receive(wire.InfoRequest)
        info = {
            "pools": {"slots": 1, "block_size": 16, "blocks_in_use": replica},
            "counters": {"verify_forwards": 10, "open": replica},
            "stages": {"verify": {"running": 1}, "draft": {"hosted": replica == 3}},
            "batches": [{"replica": replica}],
        }
        engine.send(wire.InfoReply(number=question.number, info=info))
    info = client.expect("info")
    assert info["pools"] == {"slots": 4, "block_size": 16, "blocks_in_use": 6}
    assert info["counters"]["verify_forwards"] == 40
    assert info["stages"] == {"verify": {"running": 4}, "draft": {"hosted": True}}
    assert info["batches"] == [{"replica": replica} for replica in range(REPLICAS)]
    assert [item["process"] for item in info["replicas"]] == list(front.names)
    assert [item["pools"]["blocks_in_use"] for item in info["replicas"]] == [0, 1, 2, 3]
    assert [item["open_requests"] for item in info["replicas"]] == [1, 0, 0, 0]
    edges = {edge["name"]: edge for edge in info["edges"]}
    assert edges["front>verify"]["messages"] == 1 + REPLICAS
    assert edges["verify>front"]["messages"] == 2 * REPLICAS
    assert len(edges["verify>front"]["endpoints"]) == REPLICAS


def test_info_does_not_wait_for_one_that_dies(front: FrontUnderTest) -> None:
    first, second = front.client(), front.client()
    first.send("info")
    questions = [engine.receive(wire.InfoRequest) for engine in front.engines]
    second.send("info")  # waits for the next round
    for replica in (0, 1, 3):
        reply = wire.InfoReply(number=questions[replica].number, info={"counters": {"x": 1}})
        front.engines[replica].send(reply)
    assert not first.socket.poll(50)
    front.kill_engine(replica=2)
    assert first.expect("info")["counters"]["x"] == 3
    for replica in (0, 1, 3):
        question = front.engines[replica].receive(wire.InfoRequest)
        # An answer to a question of before counts for nothing.
        stale = wire.InfoReply(number=question.number - 1, info={"counters": {"x": 9}})
        front.engines[replica].send(stale)
        front.engines[replica].send(wire.InfoReply(number=question.number, info={}))
    assert "x" not in second.expect("info")["counters"]


def test_a_lane_that_dies_stops_nothing(make_front: MakeFront) -> None:
    front = make_front(table=PDV).start()
    assert front.names == ("verify-0",)
    client = front.client()
    lanes = {"prefill-0": 11, "draft-0": 12}
    assert ask(front, client, 0, processes=lanes)["away"] == []
    key = open_request(front, client, "a", 0)
    front.order(control_wire.Restarting("draft-0", 1, 9))
    while "draft-0" not in (info := ask(front, client, 0, processes=lanes))["away"]:
        pass  # the order was not there yet
    assert info["counters"]["restarts"] == 1
    assert set(info["processes"]) == {"front", "prefill-0", "verify-0", "tokenizer-0"}
    assert info["replicas"][0]["serves"]
    front.engines[0].emit(Entry(key, [9], finish=Finish.LENGTH))
    assert client.until_last("a")[1]["finish"] == "length"
    assert ask(front, client, 0)["away"] == ["draft-0"]
    info = ask(front, client, 0, processes={**lanes, "draft-0": 13})
    assert info["away"] == []
    assert info["processes"]["draft-0"] == 13
    info = die(front, replica=0)  # its lanes are killed with it
    assert info["away"] == ["draft-0", "prefill-0", "verify-0"]
    assert set(info["processes"]) == {"front", "tokenizer-0"}
    front.order(control_wire.Restarting("pools", 1, 9))
    watch(front, lambda info: "pools" in info["away"])
    revive(front, 0)
    info = ask(front, client, 0, processes=lanes)
    assert info["away"] == []
    assert info["counters"]["restarts"] == 3


# All of it at once


def token(seed: int, position: int) -> int:
    """What every engine gives at a position of the output."""
    return 1 + (seed * 7919 + position * 104_729) % 399


class Chaos:
    """Requests of some clients, through engines that die and come back at random."""

    def __init__(self, front: FrontUnderTest, seed: int, credits: int) -> None:
        self.front = front
        self.random = random.Random(seed)
        self.credits = credits
        self.clients = [front.client() for _ in range(3)]
        self.running: list[dict[int, list[int]]] = [{} for _ in range(REPLICAS)]
        self.log: dict[tuple[int, str], list[dict[str, Any]]] = {}
        self.wanted: dict[tuple[int, str], tuple[int, int]] = {}
        self.cancelled: set[tuple[int, str]] = set()
        self.away: set[int] = set()
        self.deaths = 0

    def start(self) -> None:
        number = self.random.randrange(len(self.clients))
        key = (number, f"r{len(self.log)}")
        seed, count = len(self.log), self.random.randrange(1, 30)
        self.wanted[key], self.log[key] = (seed, count), []
        self.clients[number].send(
            "generate", id=key[1], prompt_ids=PROMPT, seed=seed, max_tokens=count
        )

    def cancel(self) -> None:
        number, id = self.random.choice(list(self.log))
        self.cancelled.add((number, id))
        self.clients[number].send("cancel", id=id)

    def kill(self) -> None:
        replica = self.random.randrange(REPLICAS)
        self.deaths += 1
        running = list(self.running[replica])
        batch = self.random.sample(running, min(len(running), self.random.randrange(2)))
        self.front.kill_engine(*batch, replica=replica)
        self.running[replica].clear()
        self.away.add(replica)

    def revive(self) -> None:
        if self.away:
            replica = self.random.choice(list(self.away))
            self.away.remove(replica)
            self.front.revive_engine(replica)

    def read_engine(self, replica: int) -> None:
        engine, running = self.front.engines[replica], self.running[replica]
        while engine.socket.poll(0):
            message, _ = wire.decode(engine.socket.recv(), 0)
            if isinstance(message, wire.Open):
                position = len(message.prompt_ids) - len(PROMPT)
                running[message.request] = [message.sampling[4], position, message.max_tokens]
                assert len(running) <= self.credits
            elif isinstance(message, wire.Close):
                for key in message.requests.tolist():
                    if running.pop(key, None) is not None:
                        engine.emit(Entry(key, finish=Finish.ABORT))

    def cycle(self, replica: int) -> None:
        entries = []
        for key, state in list(self.running[replica].items()):
            seed, position, left = state
            count = min(left, self.random.randrange(1, 4))
            ids = [token(seed, position + n) for n in range(count)]
            finish = Finish.LENGTH if count == left else Finish.NONE
            entries.append(Entry(key, ids, finish=finish))
            self.running[replica][key] = [seed, position + count, left - count]
            if finish:
                del self.running[replica][key]
        if entries:
            self.front.engines[replica].emit(*entries)

    def read_clients(self, wait_ms: int = 0) -> None:
        for number, client in enumerate(self.clients):
            while client.socket.poll(wait_ms):
                message = msgpack.unpackb(client.socket.recv(zmq.NOBLOCK))
                if message["type"] != "alive":
                    self.log[number, message["id"]].append(message)

    @property
    def unfinished(self) -> bool:
        return any(not log or log[-1]["type"] not in ("done", "error") for log in self.log.values())

    def check(self, key: tuple[int, str]) -> str:
        seed, count = self.wanted[key]
        accepted, *tokens, last = self.log[key]
        assert accepted["type"] == "accepted"
        ids = []
        for seq, item in enumerate(tokens):
            assert (item["type"], item["seq"], item["offset"]) == ("tokens", seq, len(ids))
            ids += item["ids"]
        assert ids == [token(seed, position) for position in range(len(ids))]
        if last["type"] == "error":
            assert last["code"] == "internal"
            return "condemned"
        assert len(ids) == count or (last["finish"] == "abort" and key in self.cancelled)
        return str(last["finish"])


@pytest.mark.parametrize("seed", range(3))
def test_no_token_is_lost_or_doubled_whoever_dies(make_front: MakeFront, seed: int) -> None:
    credits = 2
    chaos = Chaos(make_front(credits=credits, table=BASELINE).start(), seed, credits)
    assert chaos.front.facts["max_model_len"] == MAX_MODEL_LEN
    for _ in range(1500):
        action = chaos.random.random()
        if action < 0.12:
            chaos.start()
        elif action < 0.13 and chaos.log:
            chaos.cancel()
        elif action < 0.15:
            chaos.kill()
        elif action < 0.20:
            chaos.revive()
        elif action < 0.80:
            replica = chaos.random.randrange(REPLICAS)
            if replica not in chaos.away:
                chaos.read_engine(replica)
                chaos.cycle(replica)
        else:
            chaos.read_clients(wait_ms=1)
    while chaos.away:
        chaos.revive()
    for _ in range(5000):
        if not chaos.unfinished:
            break
        for replica in range(REPLICAS):
            chaos.read_engine(replica)
            chaos.cycle(replica)
        chaos.read_clients(wait_ms=1)
    assert not chaos.unfinished
    endings = [chaos.check(key) for key in chaos.log]
    assert chaos.deaths > 15
    assert endings.count("length") > 0.8 * len(endings)
    while closing := watch(chaos.front, lambda info: True)["counters"]["closing_requests"]:
        assert closing > 0
        for engine in chaos.front.engines:
            while engine.early:
                keys = engine.receive(wire.Close).requests.tolist()
                engine.emit(*(Entry(key, finish=Finish.ABORT) for key in keys))
    counters = watch(chaos.front, lambda info: True)["counters"]
    assert counters["open_requests"] == counters["waiting_requests"] == 0
    assert counters["free_credits"] == credits * REPLICAS
    assert counters["restarts"] == chaos.deaths
