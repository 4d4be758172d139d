"""Requests through a front whose engine is played by the test."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from front.front_harness import MAX_MODEL_LEN, Entry, FakeClient, FrontUnderTest

from pdv_mp.config import ConfigError
from pdv_mp.front.text import TextCodec
from pdv_mp.wire import control as control_wire
from pdv_mp.wire import engine as wire
from pdv_mp.wire.engine import Finish

MakeFront = Callable[..., FrontUnderTest]


def open_request(front: FrontUnderTest, client: FakeClient, id: str = "a", **fields: Any) -> Any:
    """Send a generate and return the Open that reaches the engine."""
    client.send("generate", id=id, **{"prompt_ids": [5, 6, 7], **fields})
    client.expect("accepted", id=id)
    return front.engine.receive(wire.Open)


def check_served(front: FrontUnderTest, client: FakeClient) -> None:
    """A good request is served from beginning to end."""
    opened = open_request(front, client, "good")
    front.engine.emit(Entry(opened.request, [9], finish=Finish.LENGTH))
    tokens, done = client.until_last("good")
    assert [item["ids"] for item in tokens] == [[9]]
    assert done["finish"] == "length"


def test_hello_and_ping_name_the_server(front: FrontUnderTest) -> None:
    client = front.client()
    client.send("hello", client="a test")
    welcome = client.expect("welcome", model="tiny", draft_model=None, topology="unified")
    assert welcome["vocab_size"] == 400
    assert welcome["eos_ids"] == [0]
    assert welcome["max_model_len"] == MAX_MODEL_LEN
    assert set(welcome["limits"]) == {
        "max_tokens",
        "max_prompt_tokens",
        "max_open_requests",
        "max_message_bytes",
    }
    client.send("ping", n=-(2**53) + 1)
    client.expect(
        "pong",
        n=-(2**53) + 1,
        instance=welcome["instance"],
        connection=welcome["connection"],
    )
    other = front.client(front.ipc)
    other.send("ping", n=0)
    assert other.expect("pong")["connection"] != welcome["connection"]


def test_a_request_streams_and_ends_with_done(front: FrontUnderTest, codec: TextCodec) -> None:
    client = front.client()
    ids = codec.encode("for index in text: print(index)")
    prompt = "def decode("
    client.send("generate", id="a", prompt=prompt, temperature=0.5, top_k=-1, seed=7, max_tokens=40)
    client.expect("accepted", id="a", prompt_tokens=len(codec.encode(prompt)), seed=7)
    opened = front.engine.receive(wire.Open)
    assert opened.prompt_ids.tolist() == codec.encode(prompt)
    assert opened.sampling == (0.5, 0, 1.0, 0.0, 7)
    assert opened.stop_ids == (0,)
    assert opened.max_tokens == 40
    front.engine.emit(Entry(opened.request, ids[:3], drafted=4, accepted=2, cached=1))
    front.engine.emit(Entry(opened.request, ids[3:4]))
    front.engine.emit(
        Entry(opened.request, [*ids[4:], 0], drafted=4, accepted=4, finish=Finish.STOP, stop_id=0)
    )
    tokens, done = client.until_last("a")
    assert [id for item in tokens for id in item["ids"]] == [*ids, 0]
    assert "".join(item["text"] for item in tokens) == codec.decode(ids)
    flags = [flag for item in tokens for flag in item["drafted"]]
    last = len(ids) + 1 - 4
    assert flags == ([1, 1, 0] + [0] + [1] * min(4, last) + [0] * max(0, last - 4))
    assert done["finish"] == "stop"
    assert done["stop_reason"] == 0
    assert done["usage"] == {
        "prompt_tokens": len(opened.prompt_ids),
        "completion_tokens": len(ids) + 1,
        "cached_tokens": 1,
    }
    assert done["speculation"] == {
        "cycles": 2,
        "drafted": 8,
        "accepted": 6,
        "accepted_per_pos": [2, 2, 1, 1],
    }
    timing = done["timing"]
    assert 0 <= timing["queue_ms"] <= timing["ttft_ms"] <= timing["e2e_ms"]
    assert "timeline" not in done
    assert "ids" not in done


def test_defaults_of_a_request(front: FrontUnderTest) -> None:
    client = front.client()
    client.send("generate", id="a", prompt_ids=[5] * 60, ignore_eos=True, stop_token_ids=[3])
    seed = client.expect("accepted", id="a")["seed"]
    opened = front.engine.receive(wire.Open)
    assert opened.max_tokens == MAX_MODEL_LEN - 60
    assert opened.stop_ids == (3,)
    assert opened.sampling == (0.0, 0, 1.0, 0.0, seed)
    assert opened.speculate


def test_a_collected_request_has_all_in_done(front: FrontUnderTest, codec: TextCodec) -> None:
    client = front.client()
    ids = codec.encode("emoji 🙂 and café")
    opened = open_request(front, client, stream=False)
    front.engine.emit(Entry(opened.request, ids[:5]))
    front.engine.emit(Entry(opened.request, ids[5:], finish=Finish.LENGTH))
    tokens, done = client.until_last("a")
    assert tokens == []
    assert done["ids"] == ids
    assert done["text"] == codec.decode(ids)


def test_a_stop_text_cuts_text_and_ids(front: FrontUnderTest, codec: TextCodec) -> None:
    client = front.client()
    ids = codec.encode("lazy dog STOP and END")
    opened = open_request(front, client, stop=["g STOP", "END"])
    front.engine.emit(Entry(opened.request, ids[:2], drafted=2, accepted=1))
    front.engine.emit(Entry(opened.request, ids[2:], drafted=len(ids), accepted=len(ids)))
    tokens, done = client.until_last("a")
    got = [id for item in tokens for id in item["ids"]]
    assert got == ids[: len(got)]
    assert "g STOP" in codec.decode(got)
    assert "g STOP" not in codec.decode(got[:-1])
    assert "".join(item["text"] for item in tokens) == "lazy do"
    assert done["finish"] == "stop"
    assert done["stop_reason"] == "g STOP"
    assert done["usage"]["completion_tokens"] == len(got)
    assert done["speculation"]["drafted"] == 2 + len(ids)
    assert front.engine.receive(wire.Close).requests.tolist() == [opened.request]
    # Entries that were on their way are ignored; the last one gives the credit back.
    front.engine.emit(Entry(opened.request, [9, 9]))
    front.engine.emit(Entry(opened.request, finish=Finish.ABORT))
    check_served(front, client)


def test_text_that_only_might_begin_a_stop_comes_at_the_end(
    front: FrontUnderTest, codec: TextCodec
) -> None:
    client = front.client()
    ids = codec.encode("the quick STO")
    opened = open_request(front, client, stop=["STOP"])
    front.engine.emit(Entry(opened.request, ids))
    assert client.expect("tokens", ids=ids)["text"] == "the quick "
    front.engine.emit(Entry(opened.request, finish=Finish.LENGTH))
    client.expect("tokens", ids=[], text="STO", seq=1, offset=len(ids))
    client.expect("done", finish="length", stop_reason=None)


def test_requests_wait_in_order_for_credits(make_front: MakeFront) -> None:
    front = make_front(credits=2).start()
    client = front.client()
    for id in "abcd":
        client.send("generate", id=id, prompt_ids=[1])
        client.expect("accepted", id=id)
    first, second = (front.engine.receive(wire.Open) for _ in range(2))
    assert not front.engine.socket.poll(50)
    front.engine.emit(Entry(second.request, [4], finish=Finish.LENGTH))
    third = front.engine.receive(wire.Open)
    # A cancelled request holds its credit until the engine has ended it.
    client.send("cancel", id="a")
    assert front.engine.receive(wire.Close).requests.tolist() == [first.request]
    assert not front.engine.socket.poll(50)
    front.engine.emit(Entry(first.request, finish=Finish.ABORT))
    fourth = front.engine.receive(wire.Open)
    front.engine.emit(*(Entry(item.request, [3], finish=Finish.LENGTH) for item in (third, fourth)))
    ends = {}
    while len(ends) < 4:
        message = client.receive()
        if message["type"] == "done":
            ends[message["id"]] = message["finish"]
    assert ends == {"a": "abort", "b": "length", "c": "length", "d": "length"}


def test_cancel(front: FrontUnderTest, codec: TextCodec) -> None:
    client, other = front.client(), front.client()
    ids = codec.encode("STO")
    opened = open_request(front, client, stop=["STOP"])
    front.engine.emit(Entry(opened.request, ids))
    other.send("cancel", id="a")
    other.send("ping", n=1)
    other.expect("pong")
    client.send("cancel", id="unknown")
    client.expect("tokens", text="")
    client.send("cancel", id="a")
    client.expect("tokens", ids=[], text="STO")
    client.expect("done", id="a", finish="abort")
    front.engine.receive(wire.Close)
    client.send("cancel", id="a")
    open_request(front, client, "a")  # the id is free again


def test_two_connections_may_use_one_id(front: FrontUnderTest) -> None:
    one, two = front.client(), front.client()
    first, second = open_request(front, one), open_request(front, two)
    front.engine.emit(
        Entry(second.request, [2], finish=Finish.LENGTH),
        Entry(first.request, [1], finish=Finish.LENGTH),
    )
    assert one.until_last("a")[0][0]["ids"] == [1]
    assert two.until_last("a")[0][0]["ids"] == [2]


def test_tokenize_and_detokenize(front: FrontUnderTest, codec: TextCodec) -> None:
    client = front.client()
    client.send("tokenize", id="t", prompt="café 日本")
    ids = client.expect("tokenized", id="t", ids=codec.encode("café 日本"))["ids"]
    client.send("detokenize", id="t", ids=ids)
    client.expect("detokenized", id="t", text="café 日本")
    client.send("detokenize", id="t", ids=[400])
    client.expect("error", id="t", code="bad_request")


def test_alive_is_sent_while_nothing_else_is(front: FrontUnderTest) -> None:
    client, idle = front.client(), front.client()
    idle.send("ping", n=1)
    idle.expect("pong")
    open_request(front, client)
    for _ in range(2):
        assert client.socket.poll(3000)
        message = msgpack.unpackb(client.socket.recv())
        assert message["type"] == "alive"
        assert set(message) == {"v", "type", "instance", "connection"}
    assert not idle.socket.poll(0)


def test_info(front: FrontUnderTest) -> None:
    client = front.client()
    opened = open_request(front, client, "x")
    client.send("info")
    question = front.engine.receive(wire.InfoRequest)
    client.send("info")
    counters = {"draft_forwards": 3}
    front.engine.send(
        wire.InfoReply(
            number=question.number,
            info={"counters": counters, "stages": {"verify": {}}, "pools": {"blocks": 4}},
        )
    )
    info = client.expect("info", topology="unified", pools={"blocks": 4}, stages={"verify": {}})
    assert info["counters"]["draft_forwards"] == 3
    assert info["counters"]["open_requests"] == 1
    assert info["configuration"]["server"]["port"] == 0
    assert set(info["processes"]) == {"front", "worker-0"}
    edges = {edge["name"]: edge for edge in info["edges"]}
    assert edges["front>verify"]["messages"] == 2
    assert edges["client>front"]["bytes"] > 0
    # The second question came after the first was asked, so it gets an answer of its own.
    second = front.engine.receive(wire.InfoRequest)
    assert second.number != question.number
    front.engine.emit(Entry(opened.request, finish=Finish.LENGTH))
    front.engine.send(wire.InfoReply(number=second.number, info={}))
    client.expect("done")
    finished = client.expect("info")["counters"]["finished"]
    assert finished == {"stop": 0, "length": 1, "abort": 0}


def test_timeline_adds_up(front: FrontUnderTest) -> None:
    client = front.client()
    client.send("generate", id="a", prompt="the quick", timeline=True, max_tokens=8)
    client.expect("accepted")
    opened = front.engine.receive(wire.Open)
    assert opened.report_timeline
    front.engine.emit(Entry(opened.request, [5], timeline=opened.timeline))
    client.expect("tokens")
    front.engine.emit(Entry(opened.request, [6], finish=Finish.LENGTH, timeline=opened.timeline))
    client.expect("tokens")
    done = client.expect("done")
    timeline = done["timeline"]
    assert sum(state["ns"] for state in timeline["states"].values()) == timeline["e2e_ns"]
    assert all(state["ns"] >= 0 for state in timeline["states"].values())
    assert timeline["e2e_ns"] == pytest.approx(done["timing"]["e2e_ms"] * 1e6)
    assert {name: state["n"] for name, state in timeline["states"].items()} == {
        "client>front.decode": 1,
        "front.text": 2,
        "front.publish": 2,
        "front>verify.encode": 1,
        "verify.compute": 1,
        "verify>front.encode": 1,
        "verify>front.wire": 1,
        "verify>front.decode": 1,
        "front.inbox": 1,
    }
    assert {"verify>front.wire", "front.text"} <= set(timeline["overlapped"])
    assert all(state["n"] == 1 for state in timeline["overlapped"].values())


def test_timeline_of_cancelled_requests(make_front: MakeFront) -> None:
    front = make_front(credits=1).start()
    client = front.client()
    client.send("generate", id="running", prompt_ids=[1], timeline=True)
    client.send("generate", id="queued", prompt_ids=[1], timeline=True)
    opened = front.engine.receive(wire.Open)
    client.expect("accepted")
    client.expect("accepted")
    client.send("cancel", id="queued")
    queued = client.expect("done", id="queued")["timeline"]
    assert sum(state["ns"] for state in queued["states"].values()) == queued["e2e_ns"]
    assert queued["states"]["front.queue"]["ns"] > 0
    front.engine.emit(Entry(opened.request, [4], timeline=opened.timeline))
    client.expect("tokens")
    client.send("cancel", id="running")
    running = client.expect("done", id="running")["timeline"]
    assert sum(state["ns"] for state in running["states"].values()) == running["e2e_ns"]


def test_a_lost_client_has_its_requests_cancelled(make_front: MakeFront) -> None:
    front = make_front(credits=1).start()
    leaver, stayer = front.client(), front.client()
    opened = open_request(front, leaver, "a")
    leaver.send("generate", id="b", prompt_ids=[2])
    leaver.expect("accepted", id="b")
    leaver.socket.close(linger=0)
    started = time.monotonic()
    closed = front.engine.receive(wire.Close)
    assert time.monotonic() - started < 2.0
    assert closed.requests.tolist() == [opened.request]
    front.engine.emit(Entry(opened.request, finish=Finish.ABORT))
    check_served(front, stayer)


def test_drain_finishes_what_is_open(front: FrontUnderTest) -> None:
    client = front.client()
    opened = open_request(front, client)
    front.order(control_wire.Drain())
    for attempt in range(1000):  # the order travels on another socket than the requests
        client.send("generate", id=f"late {attempt}", prompt_ids=[1])
        answer = client.receive()
        if answer["type"] == "error":
            break
        extra = front.engine.receive(wire.Open)
        front.engine.emit(Entry(extra.request, finish=Finish.LENGTH))
        client.expect("done")
    assert (answer["code"], answer["retryable"]) == ("draining", True)
    front.engine.emit(Entry(opened.request, [4], finish=Finish.LENGTH))
    client.expect("tokens")
    client.expect("done", finish="length")
    front.expect_control(control_wire.Drained)


def test_abort_ends_open_and_waiting_requests(make_front: MakeFront) -> None:
    front = make_front(credits=1).start()
    client = front.client()
    opened = open_request(front, client, "a")
    client.send("generate", id="b", prompt_ids=[2])
    client.expect("accepted", id="b")
    front.order(control_wire.Abort())
    client.expect("done", id="a", finish="abort")
    client.expect("done", id="b", finish="abort")
    assert front.engine.receive(wire.Close).requests.tolist() == [opened.request]
    front.expect_control(control_wire.Drained)
    front.order(control_wire.Stop())
    front.thread.join(10)
    assert not front.thread.is_alive()


def test_stop_ends_open_requests(front: FrontUnderTest) -> None:
    client = front.client()
    open_request(front, client, "a")
    front.order(control_wire.Stop())
    client.expect("done", id="a", finish="abort")


def test_stop_before_the_engine_is_ready(make_front: MakeFront) -> None:
    front = make_front()
    front.order(control_wire.Stop())
    front.thread.join(10)
    assert not front.thread.is_alive()
    assert front.error is None


def test_another_configuration_is_refused(make_front: MakeFront) -> None:
    front = make_front()
    front.facts["fingerprint"] = "another"
    front.engine.send(wire.EngineReady(facts=front.facts))
    front.thread.join(10)
    assert "another configuration" in str(front.error)


def test_a_taken_port_is_named(front: FrontUnderTest, make_front: MakeFront) -> None:
    port = int(front.endpoint.rsplit(":", 1)[1])
    second = make_front(port=port)
    second.engine.send(wire.EngineReady(facts=second.facts))
    second.thread.join(10)
    assert isinstance(second.error, ConfigError)
    assert str(second.error) == (
        f"--port {port} cannot be used on 127.0.0.1: address already in use; "
        "choose another, or 0 for a free one"
    )


def test_prompt_ids_travel_as_they_are(front: FrontUnderTest) -> None:
    opened = open_request(front, front.client(), prompt_ids=[399, 0, 17])
    assert opened.prompt_ids.dtype == np.int32
    assert opened.prompt_ids.tolist() == [399, 0, 17]
