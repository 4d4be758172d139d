"""The worker dies and comes back, and its requests go on; the test plays the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from front.front_harness import Entry, FakeClient, FrontUnderTest

from pdv_mp.front.text import TextCodec
from pdv_mp.wire import control as control_wire
from pdv_mp.wire import engine as wire
from pdv_mp.wire.engine import Finish

MakeFront = Callable[..., FrontUnderTest]
PROMPT = [5, 6, 7]


def open_request(front: FrontUnderTest, client: FakeClient, id: str, **fields: Any) -> Any:
    client.send("generate", id=id, **{"prompt_ids": PROMPT, "seed": 1, **fields})
    client.expect("accepted", id=id)
    return front.engine.receive(wire.Open)


def die(front: FrontUnderTest, *batch: int, **keywords: int) -> dict[str, Any]:
    """Kills the engine and returns the counters of when the front has noticed."""
    front.kill_engine(*batch, **keywords)
    watcher = front.client()
    while True:
        watcher.send("info")
        # One that comes before the news of the death is answered with them at the latest.
        info = watcher.expect("info")
        if info["counters"]["restarts"] == front.engine.generation:
            assert info["pools"] == {}
            assert set(info["processes"]) == {"front"}
            return dict(info["counters"])


def counters(front: FrontUnderTest, client: FakeClient) -> dict[str, Any]:
    client.send("info")
    question = front.engine.receive(wire.InfoRequest)
    front.engine.send(wire.InfoReply(number=question.number, info={}))
    return dict(client.expect("info")["counters"])


def nothing_opened(front: FrontUnderTest) -> bool:
    return not front.engine.socket.poll(50)


def test_open_requests_go_on_where_they_were(make_front: MakeFront, codec: TextCodec) -> None:
    front = make_front(credits=2).start()
    client = front.client()
    ids = codec.encode("déjà vu 🙂 for index, character in enumerate(text): STOP here")
    fields = {"max_tokens": 40, "temperature": 0.5, "top_p": 0.9, "stop_token_ids": [3]}
    first = open_request(front, client, "a", **fields, stop=["STOP"])
    second = open_request(front, client, "b", stream=False, max_tokens=10, speculate=False)
    for id in "cd":
        client.send("generate", id=id, prompt_ids=[8])
        client.expect("accepted", id=id)
    front.engine.emit(Entry(first.request, ids[:1], cached=2), Entry(second.request, [9]))
    front.engine.emit(Entry(first.request, ids[1:3], drafted=4, accepted=1, cached=2))
    tokens = [client.expect("tokens", id="a"), client.expect("tokens", id="a")]
    found = die(front)
    assert found["waiting_requests"] == 4
    assert found["free_credits"] == 2
    assert nothing_opened(front)
    client.send("generate", id="e", prompt_ids=[8])  # accepted, to wait with the others
    client.expect("accepted", id="e")
    front.revive_engine()
    again = front.engine.receive(wire.Open)
    assert again.request == first.request
    assert again.prompt_ids.tolist() == PROMPT + ids[:3]
    assert again.max_tokens == 37
    assert (again.sampling, again.stop_ids) == (first.sampling, first.stop_ids)
    other = front.engine.receive(wire.Open)
    assert (other.request, other.prompt_ids.tolist()) == (second.request, [*PROMPT, 9])
    assert (other.max_tokens, other.speculate) == (9, False)
    assert nothing_opened(front)  # the others wait for a credit, as before
    front.engine.emit(Entry(first.request, ids[3:5], drafted=4, accepted=2, cached=5))
    front.engine.emit(
        Entry(first.request, ids[5:]), Entry(second.request, [10], finish=Finish.LENGTH)
    )
    while (message := client.receive())["type"] != "done" or message["id"] != "a":
        if message["type"] == "tokens":
            tokens.append(message)
        else:
            assert (message["type"], message["id"], message["ids"]) == ("done", "b", [9, 10])
    assert [item["seq"] for item in tokens] == list(range(len(tokens)))
    sent = [id for item in tokens for id in item["ids"]]
    assert sent == ids[: len(sent)]
    text = "".join(item["text"] for item in tokens)
    assert text == codec.decode(ids).partition("STOP")[0]
    assert (message["finish"], message["stop_reason"]) == ("stop", "STOP")
    assert message["usage"]["prompt_tokens"] == len(PROMPT)
    assert message["usage"]["completion_tokens"] == len(sent)
    assert message["usage"]["cached_tokens"] == 2  # of the first admission
    assert message["speculation"]["accepted_per_pos"] == [2, 1, 0, 0]
    assert front.engine.receive(wire.Close).requests.tolist() == [first.request]
    assert front.engine.receive(wire.Open).prompt_ids.tolist() == [8]


def test_the_time_without_a_worker_is_a_state(front: FrontUnderTest) -> None:
    client = front.client()
    opened = open_request(front, client, "a", timeline=True)
    front.engine.emit(Entry(opened.request, [9], timeline=opened.timeline))
    client.expect("tokens", id="a")
    die(front)
    client.send("generate", id="b", prompt_ids=[8], timeline=True)
    client.expect("accepted", id="b")
    front.revive_engine()
    for id in "ab":
        again = front.engine.receive(wire.Open)
        front.engine.emit(Entry(again.request, [10], timeline=again.timeline, finish=Finish.LENGTH))
        timeline = client.until_last(id)[1]["timeline"] if id == "b" else drain(client)
        states = timeline["states"]
        assert states["front.restart"]["n"] == 1
        assert sum(state["ns"] for state in states.values()) == timeline["e2e_ns"]
        assert all(state["ns"] >= 0 for state in states.values())
        if id == "a":
            assert timeline["overlapped"]["front.text"]["n"] == 1


def drain(client: FakeClient) -> dict[str, Any]:
    """The timeline of the next ``done``."""
    while (message := client.receive())["type"] != "done":
        pass
    return dict(message["timeline"])


def test_prompt_logprobs_are_asked_for_until_they_are_complete(front: FrontUnderTest) -> None:
    client = front.client()
    opened = open_request(front, client, "a", prompt_logprobs=0)
    assert opened.prompt_logprobs == 0

    def part(start: int, rows: int) -> wire.PromptLogprobs:
        empty = np.zeros(0, np.float32)
        columns = wire.LogprobColumns(
            np.arange(start, start + rows, dtype=np.float32),
            np.zeros(rows, np.int32),
            np.zeros(0, np.int32),
            empty,
        )
        return wire.PromptLogprobs(request=opened.request, start=start, logprobs=columns)

    front.engine.send(part(1, 1))
    counters(front, client)  # it has arrived
    die(front)
    front.revive_engine()
    assert front.engine.receive(wire.Open).prompt_logprobs == 0
    front.engine.send(part(1, 2))
    front.engine.emit(Entry(opened.request, [9]))
    client.expect("tokens", id="a")
    die(front)
    front.revive_engine()
    assert front.engine.receive(wire.Open).prompt_logprobs == -1
    front.engine.emit(Entry(opened.request, [10], finish=Finish.LENGTH))
    while (done := client.receive())["type"] != "done":
        pass
    assert [item["id"] for item in done["prompt_logprobs"]] == PROMPT[1:]
    assert [item["logprob"] for item in done["prompt_logprobs"]] == [1.0, 2.0]


def test_cancelled_while_there_is_no_worker(front: FrontUnderTest) -> None:
    client = front.client()
    opened = open_request(front, client, "a", stop=["zzz"])
    front.engine.emit(Entry(opened.request, [9]))
    client.expect("tokens", id="a")
    kept = open_request(front, client, "b")
    die(front)
    client.send("cancel", id="a")
    client.expect("done", id="a", finish="abort")
    front.revive_engine()
    assert front.engine.receive(wire.Open).request == kept.request
    assert nothing_opened(front)
    assert counters(front, client)["free_credits"] == 3


def test_what_was_closing_is_over(front: FrontUnderTest) -> None:
    client = front.client()
    opened = open_request(front, client, "a")
    client.send("cancel", id="a")
    client.expect("done", id="a", finish="abort")
    assert front.engine.receive(wire.Close).requests.tolist() == [opened.request]
    assert counters(front, client)["closing_requests"] == 1
    found = die(front)
    assert (found["closing_requests"], found["free_credits"]) == (0, 4)
    front.revive_engine()
    assert nothing_opened(front)
    assert open_request(front, client, "a").request != opened.request


def test_a_client_that_leaves_while_there_is_no_worker(front: FrontUnderTest) -> None:
    client, other = front.client(), front.client()
    open_request(front, other, "gone")
    kept = open_request(front, client, "a")
    die(front)
    other.socket.close(linger=0)
    while counters_now(client)["open_requests"] > 1:
        pass  # it is noticed when `alive` is due
    front.revive_engine()
    assert front.engine.receive(wire.Open).request == kept.request
    assert nothing_opened(front)


def counters_now(client: FakeClient) -> dict[str, Any]:
    """The counters, of a front without an engine."""
    client.send("info")
    return dict(client.expect("info")["counters"])


def test_draining_waits_for_the_worker(front: FrontUnderTest) -> None:
    client = front.client()
    opened = open_request(front, client, "a")
    die(front)
    front.order(control_wire.Drain())
    while True:
        client.send("generate", id="late", prompt_ids=[1])
        if client.receive()["type"] == "error":
            break
        client.send("cancel", id="late")
        client.expect("done", id="late")
    assert not front.supervisor.poll(50)
    front.revive_engine()
    front.engine.receive(wire.Open)
    front.engine.emit(Entry(opened.request, [9], finish=Finish.LENGTH))
    assert client.until_last("a")[1]["finish"] == "length"
    front.expect_control(control_wire.Drained)


def test_an_abort_does_not_wait_for_the_worker(front: FrontUnderTest) -> None:
    client = front.client()
    open_request(front, client, "a")
    die(front)
    front.order(control_wire.Abort())
    client.expect("done", id="a", finish="abort")
    front.expect_control(control_wire.Drained)


def test_a_worker_that_does_not_come_back(front: FrontUnderTest) -> None:
    client = front.client()
    open_request(front, client, "a")
    die(front)
    front.order(control_wire.Lost("worker-0"))
    client.expect("error", id="a", code="lane_failed", retryable=True)
    front.expect_control(control_wire.Drained)


def test_two_deaths_in_a_row_and_a_message_of_the_one_before(front: FrontUnderTest) -> None:
    client = front.client()
    opened = open_request(front, client, "a")
    die(front, opened.request)
    front.kill_engine()  # it died before it was ready, so it worked on nothing
    front.revive_engine()
    assert front.engine.receive(wire.Open).request == opened.request
    front.engine.generation = 1
    front.engine.emit(Entry(opened.request, [9], finish=Finish.LENGTH))
    front.engine.generation = 2
    front.engine.emit(Entry(opened.request, [10], finish=Finish.LENGTH))
    tokens, done = client.until_last("a")
    assert [item["ids"] for item in tokens] == [[10]]
    assert done["finish"] == "length"
    assert [path.name for path in front.run_dir.glob("batch-*")] == []


@pytest.mark.parametrize(
    ("fact", "value", "fine"),
    [
        ("kv_blocks", 7, True),
        ("max_request_tokens", 65, True),
        ("max_request_tokens", 63, False),
        ("vocab_size", 401, False),
        ("eos_ids", [0, 1], False),
        ("fingerprint", "other", False),
    ],
)
def test_the_worker_must_be_what_it_was(
    front: FrontUnderTest, fact: str, value: Any, fine: bool
) -> None:
    client = front.client()
    opened = open_request(front, client, "a")
    die(front)
    front.facts = {**front.facts, fact: value}
    front.revive_engine()
    if fine:
        assert front.engine.receive(wire.Open).request == opened.request
        return
    client.expect("error", id="a", code="lane_failed", retryable=True)
    front.thread.join(10)
    assert fact in str(front.error)


# Requests that kill their worker


def serve_alone(front: FrontUnderTest, request: int) -> None:
    """The engine serves a request that it has to itself, up to the proof of its innocence."""
    assert front.engine.receive(wire.Open).request == request
    assert nothing_opened(front)
    front.engine.emit(Entry(request, [11]))
    assert nothing_opened(front)


def test_a_request_that_keeps_killing_its_worker_is_condemned(make_front: MakeFront) -> None:
    front = make_front(credits=4).start()
    client = front.client()
    keys = [open_request(front, client, id).request for id in "abc"]
    a, b, c = keys
    die(front, a, b)
    front.revive_engine()
    assert [front.engine.receive(wire.Open).request for _ in keys] == keys
    front.engine.emit(*(Entry(key, [11]) for key in keys))  # a prefill alone proves nothing
    for id in "abc":
        client.expect("tokens", id=id)
    die(front, a, b)
    client.send("generate", id="d", prompt_ids=[8])
    client.expect("accepted", id="d")
    front.revive_engine()
    serve_alone(front, a)
    assert not client.socket.poll(50)  # held back until the proof
    front.engine.emit(Entry(a, [12, 13], drafted=4, accepted=1))
    client.expect("tokens", id="a", ids=[11], drafted=[0], seq=1, offset=1)
    client.expect("tokens", id="a", ids=[12, 13], drafted=[1, 0], seq=2, offset=2)
    # It makes room for the next, and what comes before it has is not lost.
    assert front.engine.receive(wire.Close).requests.tolist() == [a]
    front.engine.emit(Entry(a, [14]))
    client.expect("tokens", id="a", ids=[14], seq=3)
    front.engine.emit(Entry(a, finish=Finish.ABORT))
    serve_alone(front, b)
    die(front, b)
    error = client.expect("error", id="b", code="internal", retryable=False)
    assert "worker-0 died 3 times" in error["message"]
    front.revive_engine()
    opened = [front.engine.receive(wire.Open) for _ in "acd"]
    assert [item.request for item in opened[:2]] == [a, c]
    assert opened[0].prompt_ids.tolist() == [*PROMPT, 11, 11, 12, 13, 14]
    front.engine.emit(*(Entry(item.request, [15], finish=Finish.LENGTH) for item in opened))
    ended = set()
    while len(ended) < 3:
        if (message := client.receive())["type"] == "done":
            ended.add(message["id"])
    assert counters(front, client)["free_credits"] == 4


def test_others_wait_while_a_suspect_is_alone_and_come_when_it_is_cleared(
    front: FrontUnderTest,
) -> None:
    client = front.client()
    a, b = (open_request(front, client, id).request for id in "ab")
    for _ in range(2):
        die(front, b)
        front.revive_engine()
        assert front.engine.receive(wire.Open).request == (a if _ == 0 else b)
    assert nothing_opened(front)
    front.engine.emit(Entry(b, [11]))
    front.engine.emit(Entry(b, [12]))
    assert front.engine.receive(wire.Open).request == a  # beside it: nobody else is suspected
    die(front, b)
    front.revive_engine()
    assert [front.engine.receive(wire.Open).request for _ in "ab"] == [a, b]  # cleared


@pytest.mark.parametrize("how", ["cancel", "finish", "stop"])
def test_a_suspect_that_ends_alone_makes_room(front: FrontUnderTest, how: str) -> None:
    client = front.client()
    stop = {"stop_token_ids": [12]} if how == "stop" else {}
    a = open_request(front, client, "a", **stop).request
    b = open_request(front, client, "b").request
    for _ in range(2):
        die(front, a)
        front.revive_engine()
        front.engine.receive(wire.Open)
    assert nothing_opened(front)
    if how == "cancel":
        front.engine.emit(Entry(a, [11]))
        client.send("cancel", id="a")
        client.expect("done", id="a", finish="abort")
        while front.engine.socket.poll(0) == 0:
            pass
        messages = [front.engine.receive(object) for _ in range(2)]
        kinds = {type(message) for message in messages}
        assert kinds == {wire.Close, wire.Open}
        front.engine.emit(Entry(a, finish=Finish.ABORT))
    else:
        front.engine.emit(Entry(a, [11]))
        front.engine.emit(Entry(a, [12], finish=Finish.STOP, stop_id=12))
        tokens, done = client.until_last("a")
        assert [item["ids"] for item in tokens] == [[11], [12]]
        assert done["finish"] == "stop"
        assert front.engine.receive(wire.Open).request == b
    front.engine.emit(Entry(b, [11], finish=Finish.LENGTH))
    assert client.until_last("b")[1]["finish"] == "length"
    assert counters(front, client)["free_credits"] == 4


def test_the_last_restart_is_for_those_who_did_not_kill(front: FrontUnderTest) -> None:
    """One that proves itself after each restart, and kills the worker later."""
    client = front.client()
    a, b = (open_request(front, client, id).request for id in "ab")
    for left in (3, 2, 1):
        die(front, a, b, restarts_left=left)
        front.revive_engine()
        assert front.engine.receive(wire.Open).request == a
        if left > 1:
            assert front.engine.receive(wire.Open).request == b
        for _ in range(3):
            front.engine.emit(Entry(a, [11]))
            client.expect("tokens", id="a", ids=[11])
            if left > 1:
                front.engine.emit(Entry(b, [11]))
                client.expect("tokens", id="b", ids=[11])
    assert nothing_opened(front)
    die(front, a, restarts_left=0)
    client.expect("error", id="a", code="internal", retryable=False)
    front.revive_engine()
    assert front.engine.receive(wire.Open).request == b
    front.engine.emit(Entry(b, [12], finish=Finish.LENGTH))
    client.expect("tokens", id="b", ids=[12], offset=6)
    client.expect("done", id="b", finish="length")


def test_what_was_held_back_when_the_worker_died_is_not_sent_twice(front: FrontUnderTest) -> None:
    client = front.client()
    a = open_request(front, client, "a").request
    for _ in range(2):
        die(front, a)
        front.revive_engine()
        front.engine.receive(wire.Open)
    front.engine.emit(Entry(a, [11]))
    counters(front, client)  # it has arrived
    die(front, restarts_left=1)  # between two batches; from now on nothing is held back
    front.revive_engine()
    assert front.engine.receive(wire.Open).prompt_ids.tolist() == PROMPT
    front.engine.emit(Entry(a, [11]))
    client.expect("tokens", id="a", ids=[11], seq=0)
    front.engine.emit(Entry(a, [12], finish=Finish.LENGTH))
    client.expect("tokens", id="a", ids=[12], seq=1)
    client.expect("done", id="a")


def test_who_made_room_comes_back_in_its_old_place(front: FrontUnderTest) -> None:
    client = front.client()
    a, b, c = (open_request(front, client, id).request for id in "abc")
    die(front, a, b)
    front.revive_engine()
    assert [front.engine.receive(wire.Open).request for _ in "abc"] == [a, b, c]
    die(front, a, b)
    front.revive_engine()
    for suspect, other in ((a, b), (b, None)):
        serve_alone(front, suspect)
        front.engine.emit(Entry(suspect, [12]))
        if other is not None:
            assert front.engine.receive(wire.Close).requests.tolist() == [suspect]
            front.engine.emit(Entry(suspect, finish=Finish.ABORT))
    assert [front.engine.receive(wire.Open).request for _ in range(2)] == [a, c]
