"""Every error that the front can give, hostile frames, and readers that do not read."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from front.front_harness import MAX_MODEL_LEN, Entry, FakeClient, FrontUnderTest

from pdv_mp.front import connections
from pdv_mp.front.connections import MAX_WAITING_BYTES
from pdv_mp.wire import control as control_wire
from pdv_mp.wire import engine as wire
from pdv_mp.wire.engine import Finish

MakeFront = Callable[..., FrontUnderTest]


def check_served(front: FrontUnderTest, client: FakeClient, id: str = "good") -> None:
    """A good request is served from beginning to end."""
    client.send("generate", id=id, prompt_ids=[5], max_tokens=1)
    client.expect("accepted", id=id)
    opened = front.engine.receive(wire.Open)
    front.engine.emit(Entry(opened.request, [9], finish=Finish.LENGTH))
    assert client.until_last(id)[1]["finish"] == "length"


def wait_for_counter(front: FrontUnderTest, client: FakeClient, group: str, name: str) -> None:
    """Ask for ``info`` until a counter of the front is not zero."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        client.send("info")
        question = front.engine.receive(wire.InfoRequest)
        front.engine.send(wire.InfoReply(number=question.number, info={}))
        if client.expect("info")["counters"][group][name]:
            return
    pytest.fail(f"counter {group}.{name} stayed 0")


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("empty prompt", {"prompt": ""}, "bad_request", "prompt"),
    ("no ids", {"prompt_ids": []}, "bad_request", "prompt_ids"),
    ("negative id", {"prompt_ids": [-1]}, "bad_request", "prompt_ids"),
    ("id too high", {"prompt_ids": [400]}, "bad_request", "prompt_ids"),
    ("huge id", {"prompt_ids": [2**40]}, "bad_request", "prompt_ids"),
    (
        "sum over the context",
        {"prompt_ids": [1] * 2, "max_tokens": MAX_MODEL_LEN - 1},
        "context_length_exceeded",
        "max_tokens",
    ),
    (
        "prompt leaves too little room",
        {"prompt_ids": [1] * (MAX_MODEL_LEN - 1), "max_tokens": 2},
        "context_length_exceeded",
        "prompt_ids",
    ),
    ("long prompt", {"prompt_ids": [1] * MAX_MODEL_LEN}, "too_large", "prompt_ids"),
    ("long output", {"prompt_ids": [1], "max_tokens": MAX_MODEL_LEN}, "too_large", "max_tokens"),
    ("long text", {"prompt": "x " * 200_000}, "too_large", "prompt"),
    ("max_tokens", {"prompt_ids": [1], "max_tokens": 10**9}, "too_large", "max_tokens"),
    ("stop list", {"prompt_ids": [1], "stop": ["x"] * 17}, "too_large", "stop"),
    ("logprobs", {"prompt_ids": [1], "logprobs": 21}, "bad_request", "logprobs"),
    ("temperature", {"prompt_ids": [1], "temperature": -1}, "bad_request", "temperature"),
]


@pytest.mark.parametrize(
    ("fields", "code", "named"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused(front: FrontUnderTest, fields: dict[str, Any], code: str, named: str) -> None:
    client = front.client()
    client.send("generate", id="r", **fields)
    error = client.expect("error", id="r", code=code, retryable=False)
    assert named in error["message"]
    check_served(front, client, "r")


def test_the_limits_of_welcome_can_be_served(front: FrontUnderTest) -> None:
    client = front.client()
    client.send("hello")
    limits = client.expect("welcome")["limits"]
    for fields in (
        {"prompt_ids": [1] * limits["max_prompt_tokens"]},
        {"prompt_ids": [1], "max_tokens": limits["max_tokens"]},
    ):
        client.send("generate", id="a", **fields)
        client.expect("accepted", id="a")
        opened = front.engine.receive(wire.Open)
        assert len(opened.prompt_ids) + opened.max_tokens == MAX_MODEL_LEN
        front.engine.emit(Entry(opened.request, [3], finish=Finish.LENGTH))
        client.until_last("a")


def test_detokenize_has_a_limit(front: FrontUnderTest) -> None:
    client = front.client()
    client.send("detokenize", id="d", ids=[300] * MAX_MODEL_LEN)
    client.expect("detokenized", id="d")
    client.send("detokenize", id="d", ids=[300] * (MAX_MODEL_LEN + 1))
    error = client.expect("error", id="d", code="too_large", retryable=False)
    assert "ids" in error["message"]


def test_duplicate_id(front: FrontUnderTest) -> None:
    client = front.client()
    client.send("generate", id="a", prompt_ids=[1])
    client.expect("accepted")
    opened = front.engine.receive(wire.Open)
    client.send("generate", id="a", prompt_ids=[2])
    client.expect("error", id="a", code="duplicate_id", retryable=False)
    front.engine.emit(Entry(opened.request, [3], finish=Finish.LENGTH))
    client.expect("tokens", ids=[3])
    client.expect("done")
    check_served(front, client, "a")


def test_queue_full(make_front: MakeFront) -> None:
    front = make_front(credits=1, max_open_requests=2).start()
    client = front.client()
    for id in "ab":
        client.send("generate", id=id, prompt_ids=[1])
        client.expect("accepted")
    client.send("generate", id="c", prompt_ids=[1])
    error = client.expect("error", id="c", code="queue_full", retryable=True)
    assert 1 <= error["retry_after_ms"] <= 5000
    opened = front.engine.receive(wire.Open)
    front.engine.emit(Entry(opened.request, [3], finish=Finish.LENGTH))
    assert client.until_last("a")[1]["finish"] == "length"
    client.send("generate", id="c", prompt_ids=[1])
    client.expect("accepted", id="c")


def test_unsupported_version(front: FrontUnderTest) -> None:
    client = front.client()
    client.socket.send(msgpack.packb({"v": 2, "type": "generate", "id": "a", "prompt": "x"}))
    client.expect("error", id="a", code="unsupported_version", retryable=False)
    check_served(front, client)


@pytest.mark.parametrize(
    ("finish", "retryable"), [(Finish.FAILED, True), (Finish.CONDEMNED, False)]
)
def test_failed_by_the_engine(front: FrontUnderTest, finish: Finish, retryable: bool) -> None:
    client = front.client()
    client.send("generate", id="a", prompt_ids=[1])
    client.expect("accepted")
    opened = front.engine.receive(wire.Open)
    front.engine.emit(Entry(opened.request, finish=finish, message="out of luck"))
    client.expect("error", id="a", code="internal", message="out of luck", retryable=retryable)
    check_served(front, client)


def test_a_lost_lane(make_front: MakeFront) -> None:
    front = make_front(credits=1).start()
    client = front.client()
    for id in "ab":
        client.send("generate", id=id, prompt_ids=[1])
        client.expect("accepted", id=id)
    front.order(control_wire.Lost("worker-0"))
    for id in "ab":
        error = client.expect("error", id=id, code="lane_failed", retryable=True)
        assert "worker-0" in error["message"]
    front.expect_control(control_wire.Drained)
    client.send("generate", id="c", prompt_ids=[1])
    client.expect("error", id="c", code="lane_failed")
    client.send("ping", n=3)
    client.expect("pong", n=3)
    client.send("info")
    assert client.expect("info")["counters"]["errors"]["lane_failed"] == 3


def test_message_sizes(make_front: MakeFront) -> None:
    front = make_front(max_message_bytes=1024).start()
    client = front.client()
    client.send("generate", id="a", prompt="x" * 1100)
    client.expect("error", id=None, code="too_large", retryable=False)
    client.send("ping", n=1)
    first = client.expect("pong")["connection"]
    client.send("generate", id="a", prompt="x" * 2100)  # closes the connection
    client.send("ping", n=2)
    deadline = time.monotonic() + 10
    while True:  # libzmq reconnects; the ping may have been lost with the old connection
        if client.socket.poll(200):
            break
        assert time.monotonic() < deadline
        client.send("ping", n=2)
    assert client.expect("pong")["connection"] != first
    other = front.client()
    check_served(front, other)


@pytest.mark.parametrize("frames", [[b""], [b"", b""], [b"x"] * 3, [b""] * 100])
def test_hostile_envelopes(front: FrontUnderTest, frames: list[bytes]) -> None:
    client = front.client()
    client.socket.send_multipart(frames)
    client.expect("error", id=None, code="bad_request")
    check_served(front, client)


def test_random_frames(front: FrontUnderTest) -> None:
    client = front.client()
    generator = random.Random(1)
    for _ in range(300):
        client.socket.send(generator.randbytes(generator.randrange(60)))
        client.expect("error", id=None, code="bad_request")
    good = msgpack.packb({"v": 1, "type": "generate", "id": "a", "prompt": "hi", "stop": ["x"]})
    for _ in range(300):
        mutated = bytearray(good)
        mutated[generator.randrange(len(mutated))] = generator.randrange(256)
        client.socket.send(mutated)
    client.send("ping", n=77)
    answers = []
    while (message := client.receive())["type"] != "pong":
        assert message["type"] in ("accepted", "error")
        answers.append(message)
    accepted = [item["id"] for item in answers if item["type"] == "accepted"]
    assert len(answers) == 300
    assert accepted
    assert len(accepted) == len(set(accepted))  # none ended meanwhile, so no id was free again
    for _ in accepted:  # each reaches the engine once, and ends
        opened = front.engine.receive(wire.Open)
        front.engine.emit(Entry(opened.request, finish=Finish.LENGTH))
    ended = [client.expect("done", finish="length")["id"] for _ in accepted]
    assert sorted(ended) == sorted(accepted)
    check_served(front, front.client())


def test_messages_that_are_slow_to_refuse_do_not_hold_up_tokens(front: FrontUnderTest) -> None:
    hostile, good = front.client(), front.client()
    good.send("generate", id="a", prompt_ids=[1])
    good.expect("accepted")
    opened = front.engine.receive(wire.Open)
    count = 10
    message = {"v": 1, "type": "generate", "id": "x", "prompt_ids": [1] * 4_000_000}
    frame = msgpack.packb(message)
    for _ in range(count):
        hostile.socket.send(frame)
    hostile.expect("error", id="x", code="too_large")
    front.engine.emit(Entry(opened.request, [3], finish=Finish.LENGTH))
    good.until_last("a")
    waiting = 0
    while hostile.socket.poll(0):
        hostile.expect("error", id="x")
        waiting += 1
    assert waiting < count - 1  # the rest is still to be refused
    for _ in range(count - 1 - waiting):
        hostile.expect("error", id="x")


def test_a_reader_that_does_not_read_gets_slow_consumer(make_front: MakeFront) -> None:
    front = make_front(credits=4).start()
    slow, quick = front.client_with_short_queue(), front.client()
    ids = [300] * 10_000
    slow.send("generate", id="slow", prompt_ids=[1], timeline=True)
    slow.expect("accepted")
    opened = front.engine.receive(wire.Open)
    quick.send("generate", id="quick", prompt_ids=[1])
    quick.expect("accepted")
    other = front.engine.receive(wire.Open)
    sent = 0
    while not front.engine.socket.poll(0):
        front.engine.emit(Entry(opened.request, ids), Entry(other.request, [sent % 400]))
        quick.expect("tokens", ids=[sent % 400], offset=sent)  # nobody else notices
        sent += 1
        assert sent * len(ids) < 40 * MAX_WAITING_BYTES
    assert front.engine.receive(wire.Close).requests.tolist() == [opened.request]
    front.engine.emit(
        Entry(opened.request, finish=Finish.ABORT), Entry(other.request, finish=Finish.LENGTH)
    )
    quick.expect("done", id="quick", finish="length")
    tokens, last = slow.until_last("slow")
    assert (last["type"], last["code"], last["retryable"]) == ("error", "slow_consumer", False)
    assert 0 < len(tokens) < sent
    check_served(front, slow, "slow")


def test_an_overflow_leaves_every_other_answer(make_front: MakeFront) -> None:
    front = make_front(credits=4).start()
    slow, quick = front.client_with_short_queue(), front.client()
    opened = {}
    for id in ("slow", "finished"):
        slow.send("generate", id=id, prompt_ids=[1])
        opened[id] = front.engine.receive(wire.Open).request
    for _ in range(300):  # from here on all waits for the reader
        front.engine.emit(Entry(opened["slow"], [300] * 5000))
    front.engine.emit(Entry(opened["finished"], [7], finish=Finish.LENGTH))
    for number in range(5):
        slow.send("generate", id=f"bad {number}", prompt_ids=[999])
    slow.send("ping", n=5)
    slow.send("tokenize", id="t", prompt="hi")
    while not front.engine.socket.poll(0):
        front.engine.emit(Entry(opened["slow"], [300] * 10_000))
        quick.send("ping", n=1)
        quick.expect("pong")
    assert front.engine.receive(wire.Close).requests.tolist() == [opened["slow"]]
    front.engine.emit(Entry(opened["slow"], finish=Finish.ABORT))
    # The question about tokens may have come in behind what was too much, and is answered then.
    last: dict[tuple[str | None, str], dict[str, Any]] = {}
    while not {("slow", "error"), ("t", "tokenized")} <= last.keys():
        item = slow.receive()
        last[item.get("id"), item["type"]] = item
    assert last["slow", "error"]["code"] == "slow_consumer"
    assert last["finished", "done"]["finish"] == "length"
    assert last["finished", "tokens"]["ids"] == [7]
    assert [last[f"bad {number}", "error"]["code"] for number in range(5)] == ["bad_request"] * 5
    assert last[None, "pong"]["n"] == 5
    assert last["t", "tokenized"]["ids"]
    check_served(front, slow, "slow")
    quick.send("info")
    question = front.engine.receive(wire.InfoRequest)
    front.engine.send(wire.InfoReply(number=question.number, info={}))
    counters = quick.expect("info")["counters"]
    assert counters["finished"] == {"stop": 0, "length": 2, "abort": 0}
    assert counters["errors"]["slow_consumer"] == 1


def test_a_connection_whose_answers_alone_are_too_much_is_ended(
    make_front: MakeFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_WAITING_BYTES", 100_000)
    front = make_front().start()
    slow, quick = front.client_with_short_queue(), front.client()
    slow.send("ping", n=0)
    number = slow.expect("pong")["connection"]
    slow.send("generate", id="a", prompt_ids=[1])
    opened = front.engine.receive(wire.Open)
    for n in range(20_000):
        slow.send("ping", n=n)
        if n % 100 == 0 and front.engine.socket.poll(0):
            break
    assert front.engine.receive(wire.Close).requests.tolist() == [opened.request]
    front.engine.emit(Entry(opened.request, finish=Finish.ABORT))
    check_served(front, quick)
    message = slow.ask_until_answered()
    assert message["connection"] != number
    check_served(front, slow)


def test_a_slow_reader_gets_merged_tokens_without_a_gap(make_front: MakeFront) -> None:
    front = make_front().start()
    slow, quick = front.client_with_short_queue(), front.client()
    text_id = 300
    slow.send("generate", id="s", prompt_ids=[1], timeline=True)
    slow.expect("accepted")
    opened = front.engine.receive(wire.Open)
    quick.send("ping", n=1)
    quick.expect("pong")
    count, chunk = 400, 1000
    for _ in range(count):
        front.engine.emit(Entry(opened.request, [text_id] * chunk, timeline=opened.timeline))
    front.engine.emit(Entry(opened.request, finish=Finish.LENGTH, timeline=opened.timeline))
    # All of it is taken while the reader sleeps. Its request stays open until `done` is sent.
    wait_for_counter(front, quick, "finished", "length")
    slow.send("cancel", id="s")
    slow.send("generate", id="s", prompt_ids=[1])
    wait_for_counter(front, quick, "errors", "duplicate_id")
    tokens, done = slow.until_last("s")
    slow.expect("error", id="s", code="duplicate_id")
    assert done["type"] == "done"
    assert sum(len(item["ids"]) for item in tokens) == count * chunk
    assert len(tokens) < count
    assert max(len(item["ids"]) for item in tokens) > chunk
    timeline = done["timeline"]
    assert sum(state["ns"] for state in timeline["states"].values()) == timeline["e2e_ns"]
    assert timeline["states"]["front.outbox"]["ns"] > 0
    assert timeline["overlapped"]["front.text"]["n"] == count
