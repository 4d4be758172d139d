"""Prompts that are tokenized by other processes; the test plays these and the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from front.front_harness import Entry, FakeClient, FrontUnderTest

from pdv_mp.front import tokenizers
from pdv_mp.front.text import TextCodec
from pdv_mp.topology import UNIFIED
from pdv_mp.wire import control as control_wire
from pdv_mp.wire import engine as wire
from pdv_mp.wire.engine import Finish

MakeFront = Callable[..., FrontUnderTest]
ONE = dataclasses.replace(UNIFIED, tokenizers=1)
TWO = dataclasses.replace(UNIFIED, tokenizers=2)


@pytest.fixture
def one(make_front: MakeFront) -> FrontUnderTest:
    """A front with one tokenizer."""
    return make_front(table=ONE).start()


def info(front: FrontUnderTest, client: FakeClient) -> dict[str, Any]:
    client.send("info")
    question = front.engine.receive(wire.InfoRequest)
    front.engine.send(wire.InfoReply(number=question.number, info={}))
    while (message := client.receive())["type"] != "info":
        pass
    return message


def counters(front: FrontUnderTest, client: FakeClient) -> dict[str, Any]:
    return dict(info(front, client)["counters"])


def test_a_request_is_accepted_when_its_ids_are_known(one: FrontUnderTest) -> None:
    client = one.client()
    client.send("generate", id="a", prompt="déjà vu", timeline=True, max_tokens=1)
    texts = one.tokenizers[0].receive()
    assert texts.split() == ["déjà vu".encode()]
    client.send("generate", id="a", prompt="again")
    client.expect("error", id="a", code="duplicate_id")
    client.send("generate", id="b", prompt_ids=[5, 6], max_tokens=1)  # never waits for the others
    client.expect("accepted", id="b", prompt_tokens=2)
    opened = one.engine.receive(wire.Open)
    one.engine.emit(Entry(opened.request, [9], finish=Finish.LENGTH))
    assert client.until_last("b")[1]["finish"] == "length"
    found = counters(one, client)
    assert (found["open_requests"], found["untokenized_requests"]) == (1, 1)
    one.tokenizers[0].answer(texts, [7, 8, 9])
    client.expect("accepted", id="a", prompt_tokens=3)
    opened = one.engine.receive(wire.Open)
    assert opened.prompt_ids.tolist() == [7, 8, 9]
    one.engine.emit(Entry(opened.request, [9], timeline=opened.timeline, finish=Finish.LENGTH))
    states = client.until_last("a")[1]["timeline"]["states"]
    for edge in ("front>tokenizer", "tokenizer>front"):
        assert {f"{edge}.{what}" for what in ("encode", "wire", "decode")} <= set(states)
    for what in ("inbox", "batch", "compute", "publish"):
        assert states[f"tokenizer.{what}"]["n"] == 1
    assert all(state["ns"] >= 0 for state in states.values())


def test_the_states_add_up_also_when_the_tokenizer_was_busy(one: FrontUnderTest) -> None:
    client = one.client()
    client.send("generate", id="a", prompt="x", timeline=True, max_tokens=1)
    one.tokenizers[0].answer(one.tokenizers[0].receive(), [7], busy_ns=5)
    opened = one.engine.receive(wire.Open)
    one.engine.emit(Entry(opened.request, [9], timeline=opened.timeline, finish=Finish.LENGTH))
    client.expect("accepted", id="a")
    timeline = client.until_last("a")[1]["timeline"]
    assert timeline["states"]["tokenizer.busy"]["ns"] == 5
    total = sum(state["ns"] for state in timeline["states"].values())
    assert total == timeline["e2e_ns"]


def test_what_depends_on_the_ids_is_refused_when_they_are_known(one: FrontUnderTest) -> None:
    client = one.client()
    client.send("generate", id="far", prompt="x" * 10_000)
    client.expect("error", id="far", code="too_large")  # at once
    for id, ids, code in (
        ("a", [7] * 64, "too_large"),
        ("b", [7] * 60, "context_length_exceeded"),
        ("c", [], "bad_request"),
        ("d", None, "internal"),
    ):
        client.send("generate", id=id, prompt="x", max_tokens=20)
        one.tokenizers[0].answer(one.tokenizers[0].receive(), ids)
        client.expect("error", id=id, code=code, retryable=code == "internal")
        client.send("generate", id=id, prompt_ids=[5])  # the id is free again
        client.expect("accepted", id=id)
        client.send("cancel", id=id)
        client.expect("done", id=id, finish="abort")


def test_a_question_is_answered_and_counts_as_open(make_front: MakeFront) -> None:
    front = make_front(table=ONE, max_open_requests=2).start()
    client = front.client()
    client.send("tokenize", id="q", prompt="x")
    texts = front.tokenizers[0].receive()
    client.send("generate", id="a", prompt="y")
    client.send("generate", id="b", prompt="z")
    assert client.expect("error", id="b", code="queue_full")["retry_after_ms"] > 0
    client.send("tokenize", id="r", prompt="z")
    client.expect("error", id="r", code="queue_full")
    front.tokenizers[0].answer(texts, [3, 4])
    client.expect("tokenized", id="q", ids=[3, 4])
    client.send("tokenize", id="r", prompt="z")
    assert front.tokenizers[0].receive().split() == [b"y"]
    front.tokenizers[0].answer(front.tokenizers[0].receive(), None)
    client.expect("error", id="r", code="internal", retryable=True)


def test_a_request_that_is_cancelled_meanwhile_ends_when_it_is_accepted(
    one: FrontUnderTest,
) -> None:
    client = one.client()
    client.send("generate", id="a", prompt="x")
    texts = one.tokenizers[0].receive()
    client.send("cancel", id="a")
    client.send("ping", n=1)
    client.expect("pong")
    one.tokenizers[0].answer(texts, [7])
    client.expect("accepted", id="a", prompt_tokens=1)
    client.expect("done", id="a", finish="abort")


def test_a_client_that_waits_is_told_that_the_server_is_alive(one: FrontUnderTest) -> None:
    client = one.client()
    client.send("tokenize", id="q", prompt="x")
    one.tokenizers[0].receive()
    assert client.socket.poll(5000)
    assert b"alive" in client.socket.recv()


def test_a_drain_waits_for_what_is_tokenized(one: FrontUnderTest) -> None:
    client = one.client()
    client.send("tokenize", id="q", prompt="x")
    texts = one.tokenizers[0].receive()
    one.order(control_wire.Drain())
    assert not one.supervisor.poll(100)
    one.tokenizers[0].answer(texts, [1])
    client.expect("tokenized", id="q")
    one.expect_control(control_wire.Drained)


@pytest.mark.parametrize(
    ("order", "code"),
    [(control_wire.Abort(), "draining"), (control_wire.Lost("tokenizer-0"), "lane_failed")],
)
def test_an_end_refuses_what_is_not_accepted(
    one: FrontUnderTest, order: control_wire.SupervisorMessage, code: str
) -> None:
    client = one.client()
    client.send("generate", id="a", prompt="x")
    texts = one.tokenizers[0].receive()
    client.send("tokenize", id="q", prompt="y")
    more = one.tokenizers[0].receive()
    one.order(order)
    assert {client.expect("error", code=code)["id"] for _ in range(2)} == {"a", "q"}
    one.expect_control(control_wire.Drained)
    one.tokenizers[0].answer(texts, [1])  # nobody waits for it any more
    one.tokenizers[0].answer(more, [1])
    client.send("ping", n=1)
    client.expect("pong")


def test_an_end_does_not_wait_for_answers_to_clients_that_have_left(one: FrontUnderTest) -> None:
    leaver, other = one.client(), one.client()
    leaver.send("tokenize", id="q", prompt="x")
    one.tokenizers[0].receive()
    leaver.socket.close()
    while counters(one, other)["connections"] > 1:
        pass
    one.order(control_wire.Lost("tokenizer-0"))
    one.expect_control(control_wire.Drained)


def test_a_dead_tokenizers_texts_go_to_another_one(make_front: MakeFront, codec: TextCodec) -> None:
    front = make_front(table=TWO).start()
    client = front.client()
    prompts = {"a": "the quick", "b": "brown", "c": "fox jumps", "d": "over"}
    first, second = front.tokenizers
    received = []
    for number, (id, prompt) in enumerate(prompts.items()):
        client.send("generate", id=id, prompt=prompt)
        received.append(front.tokenizers[number % 2].receive())
    there, others = received[::2], received[1::2]
    first.answer(there[0], codec.encode(there[0].split()[0].decode()))
    client.expect("accepted", id="a")
    front.kill_tokenizer(*there[1].keys.tolist())
    again = second.receive()
    assert again.split() == there[1].split() == [b"fox jumps"]
    assert again.keys.tolist() == there[1].keys.tolist()
    front.revive_tokenizer()
    for texts in (*others, again):
        second.answer(texts, codec.encode(texts.split()[0].decode()))
    accepted = {client.expect("accepted")["id"] for _ in range(3)}
    assert accepted == {"b", "c", "d"}
    opened = [front.engine.receive(wire.Open).prompt_ids.tolist() for _ in range(4)]
    assert sorted(opened) == sorted(codec.encode(prompt) for prompt in prompts.values())
    while (found := info(front, client))["away"]:
        pass  # the successor's word was not there yet
    assert found["counters"]["restarts"] == 1
    assert [item["restarts"] for item in found["tokenizers"]] == [1, 0]
    assert [item["texts"] for item in found["tokenizers"]] == [1, 3]


def test_without_a_tokenizer_texts_wait_for_its_successor(one: FrontUnderTest) -> None:
    client = one.client()
    client.send("generate", id="a", prompt="x", timeline=True, max_tokens=1)
    one.tokenizers[0].receive()
    one.kill_tokenizer()
    client.send("generate", id="b", prompt="y")
    assert one.tokenizers[0].has_nothing
    one.revive_tokenizer()
    texts = one.tokenizers[0].receive()
    if len(texts.keys) == 1:  # the second came later than the news
        one.tokenizers[0].answer(one.tokenizers[0].receive(), [8])
        one.tokenizers[0].answer(texts, [7])
    else:
        assert texts.split() == [b"x", b"y"]
        one.tokenizers[0].answer(texts, [7], [8])
    opened = [one.engine.receive(wire.Open) for _ in range(2)]
    first = next(message for message in opened if message.prompt_ids.tolist() == [7])
    one.engine.emit(Entry(first.request, [9], timeline=first.timeline, finish=Finish.LENGTH))
    client.expect("accepted")
    client.expect("accepted")
    timeline = client.until_last("a")[1]["timeline"]
    assert timeline["states"]["front.restart"]["ns"] > 0
    assert sum(state["ns"] for state in timeline["states"].values()) == timeline["e2e_ns"]


def test_a_text_that_keeps_killing_is_given_up_and_no_other(one: FrontUnderTest) -> None:
    client = one.client()
    client.send("generate", id="bad", prompt="bad")
    (bad,) = one.tokenizers[0].receive().keys.tolist()
    client.send("generate", id="good", prompt="good")
    one.tokenizers[0].receive()
    for _ in range(2):
        one.kill_tokenizer(bad)
        one.revive_tokenizer()
        assert one.tokenizers[0].receive().split() == [b"bad", b"good"]
    one.kill_tokenizer(bad)
    error = client.expect("error", id="bad", code="internal", retryable=False)
    assert "3 processes died" in error["message"]
    one.revive_tokenizer()
    texts = one.tokenizers[0].receive()
    assert texts.split() == [b"good"]
    one.tokenizers[0].answer(texts, [5])
    client.expect("accepted", id="good")


def test_what_a_tokenizer_has_is_bounded(one: FrontUnderTest, monkeypatch: Any) -> None:
    size = 3 + tokenizers.BYTES_PER_TEXT
    monkeypatch.setattr(tokenizers, "MAX_OUTSTANDING_BYTES", 2 * size)
    client = one.client()
    for number in range(5):
        client.send("tokenize", id=str(number), prompt=f"t {number}")
    client.send("ping", n=1)
    client.expect("pong")
    seen: list[bytes] = []
    while len(seen) < 5:
        texts = one.tokenizers[0].receive()
        parts = [texts]
        while sum(len(part.keys) for part in parts) < min(2, 5 - len(seen)):
            parts.append(one.tokenizers[0].receive())
        assert one.tokenizers[0].has_nothing
        assert sum(len(part.keys) for part in parts) <= 2
        for part in parts:
            seen += part.split()
            one.tokenizers[0].answer(part, *([[1]] * len(part.keys)))
    assert seen == [f"t {number}".encode() for number in range(5)]
    for number in range(5):
        client.expect("tokenized", id=str(number))


def test_messages_of_the_scheduler_can_be_held_back(make_front: MakeFront) -> None:
    front = make_front(inject_delay="verify>front=30000").start()
    client = front.client()
    client.send("generate", id="a", prompt_ids=[5], timeline=True, max_tokens=2)
    client.expect("accepted")
    opened = front.engine.receive(wire.Open)
    front.engine.emit(Entry(opened.request, [9], timeline=opened.timeline))
    front.engine.emit(Entry(opened.request, [9], timeline=opened.timeline, finish=Finish.LENGTH))
    timeline = client.until_last("a")[1]["timeline"]
    assert timeline["states"]["verify>front.wire"]["ns"] >= 30_000_000
    assert sum(state["ns"] for state in timeline["states"].values()) == timeline["e2e_ns"]
