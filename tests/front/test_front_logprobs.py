"""Log-probabilities through the front: order, cuts, merging, sizes, and their end."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
from front.front_harness import Entry, FakeClient, FrontUnderTest, Logprob, logprob_columns

from pdv_mp.front import connections, outbox, service
from pdv_mp.front.journal import Request
from pdv_mp.front.text import TextCodec
from pdv_mp.wire import engine as wire
from pdv_mp.wire.engine import Finish
from pdv_mp.wire.protocol import PackedList

MakeFront = Callable[..., FrontUnderTest]


def rows(ids: list[int], width: int) -> list[Logprob]:
    """Something that a float32 holds exactly, different for every id and place."""
    return [(-id / 4, [(id + n, -id / 8 - n) for n in range(width)]) for id in ids]


def entries(ids: list[int], width: int) -> list[dict[str, Any]]:
    """What a client gets for :func:`rows`."""
    return [
        {"id": id, "logprob": logprob, "top": [list(pair) for pair in top]}
        for id, (logprob, top) in zip(ids, rows(ids, width), strict=True)
    ]


def open_request(front: FrontUnderTest, client: FakeClient, id: str = "a", **fields: Any) -> Any:
    client.send("generate", id=id, **{"prompt_ids": [5, 6, 7], **fields})
    client.expect("accepted", id=id)
    return front.engine.receive(wire.Open)


def send_prompt(front: FrontUnderTest, key: int, start: int, ids: list[int], width: int) -> None:
    columns = logprob_columns([*rows(ids, width)])
    front.engine.send(wire.PromptLogprobs(request=key, start=start, logprobs=columns))


def test_the_engine_is_asked(front: FrontUnderTest) -> None:
    client = front.client()
    opened = open_request(front, client, "a")
    assert (opened.logprobs, opened.prompt_logprobs) == (-1, -1)
    opened = open_request(front, client, "b", logprobs=0, prompt_logprobs=20)
    assert (opened.logprobs, opened.prompt_logprobs) == (0, 20)
    opened = open_request(front, client, "c", logprobs=3, prompt_logprobs=2, prompt_ids=[8])
    assert (opened.logprobs, opened.prompt_logprobs) == (3, -1), "one token has nothing before it"


def test_each_request_gets_its_own(front: FrontUnderTest) -> None:
    client = front.client()
    keys = {
        id: open_request(front, client, id, **fields).request
        for id, fields in {
            "none": {},
            "two": {"logprobs": 2},
            "gone": {"logprobs": 3},
            "chosen": {"logprobs": 0},
        }.items()
    }
    client.send("cancel", id="gone")
    client.expect("done", id="gone", finish="abort")
    front.engine.receive(wire.Close)
    front.engine.emit(
        Entry(keys["none"], [10, 11]),
        Entry(keys["gone"], [20, 21, 22], logprobs=rows([20, 21, 22], 3)),
        Entry(keys["two"], [30, 31], drafted=1, accepted=1, logprobs=rows([30, 31], 2)),
        Entry(keys["chosen"], [40], logprobs=rows([40], 0)),
    )
    assert "logprobs" not in client.expect("tokens", id="none")
    assert client.expect("tokens", id="two", ids=[30, 31])["logprobs"] == entries([30, 31], 2)
    assert client.expect("tokens", id="chosen")["logprobs"] == entries([40], 0)
    front.engine.emit(
        Entry(keys["gone"], finish=Finish.ABORT),
        Entry(keys["two"], [32], finish=Finish.LENGTH, logprobs=rows([32], 2)),
        Entry(keys["chosen"], finish=Finish.ABORT),
        Entry(keys["none"], finish=Finish.LENGTH),
    )
    assert client.expect("tokens", id="two", seq=1)["logprobs"] == entries([32], 2)
    for id in ("two", "chosen", "none"):
        done = client.expect("done", id=id)
        assert not {"logprobs", "prompt_logprobs"} & set(done), "they came with the tokens"


def test_a_stop_text_cuts_them_with_the_ids(front: FrontUnderTest, codec: TextCodec) -> None:
    client = front.client()
    ids = codec.encode("lazy dog STOP and END")
    opened = open_request(front, client, stop=["STOP"], logprobs=4)
    front.engine.emit(Entry(opened.request, ids, logprobs=rows(ids, 4)))
    message = client.expect("tokens", id="a")
    assert 0 < len(message["ids"]) < len(ids)
    assert message["logprobs"] == entries(message["ids"], 4)
    client.expect("done", finish="stop", stop_reason="STOP")


def test_held_back_text_comes_with_an_empty_list(front: FrontUnderTest, codec: TextCodec) -> None:
    client = front.client()
    ids = codec.encode("the quick STO")
    opened = open_request(front, client, stop=["STOP"], logprobs=1)
    front.engine.emit(Entry(opened.request, ids, logprobs=rows(ids, 1)))
    assert client.expect("tokens")["logprobs"] == entries(ids, 1)
    front.engine.emit(Entry(opened.request, finish=Finish.LENGTH))
    assert client.expect("tokens", ids=[], text="STO")["logprobs"] == []
    client.expect("done", finish="length")
    opened = open_request(front, client, stop=["STOP"], logprobs=1)
    front.engine.emit(Entry(opened.request, ids, logprobs=rows(ids, 1)))
    client.expect("tokens")
    client.send("cancel", id="a")
    assert client.expect("tokens", ids=[], text="STO")["logprobs"] == []


def test_done_collects_them_for_a_request_without_stream(front: FrontUnderTest) -> None:
    client = front.client()
    opened = open_request(front, client, stream=False, logprobs=2, prompt_logprobs=3)
    send_prompt(front, opened.request, 1, [6], 3)
    send_prompt(front, opened.request, 2, [7], 3)
    front.engine.emit(Entry(opened.request, [10, 11], logprobs=rows([10, 11], 2)))
    front.engine.emit(Entry(opened.request, [12], finish=Finish.LENGTH, logprobs=rows([12], 2)))
    done = client.expect("done", ids=[10, 11, 12])
    assert done["logprobs"] == entries([10, 11, 12], 2)
    assert done["prompt_logprobs"] == entries([6, 7], 3)


def test_prompt_log_probabilities_come_once_and_in_order(front: FrontUnderTest) -> None:
    client = front.client()
    prompt = [5, 6, 7, 8, 9]
    opened = open_request(front, client, prompt_ids=prompt, prompt_logprobs=1)
    other = open_request(front, client, "b", prompt_logprobs=1)
    send_prompt(front, opened.request, 1, [6, 7], 1)
    send_prompt(front, opened.request, 1, [6, 7, 8], 1)  # a part of it arrived before
    send_prompt(front, opened.request, 1, [6], 1)
    client.send("cancel", id="b")
    assert client.expect("done", id="b")["prompt_logprobs"] == []
    send_prompt(front, other.request, 1, [6, 7], 1)  # of a request that ended here
    send_prompt(front, opened.request, 4, [9, 33, 34], 1)  # the engine took output for prompt
    send_prompt(front, opened.request, 1, [6, 7, 8, 9], 1)
    front.engine.emit(Entry(opened.request, [3], finish=Finish.LENGTH))
    assert "logprobs" not in client.expect("tokens", ids=[3])
    assert client.expect("done", id="a")["prompt_logprobs"] == entries(prompt[1:], 1)


def test_a_slow_reader_gets_merged_ones_without_a_gap(make_front: MakeFront) -> None:
    front = make_front().start()
    slow = front.client_with_short_queue()
    opened = open_request(front, slow, logprobs=20)
    count, chunk = 250, 30
    ids = np.random.default_rng(0).integers(300, 380, (count, chunk)).tolist()
    for part in ids:
        front.engine.emit(Entry(opened.request, part, logprobs=rows(part, 20)))
    front.engine.emit(Entry(opened.request, finish=Finish.LENGTH))
    quick = front.client()
    quick.send("info")  # answered when all of this was taken
    front.engine.send(wire.InfoReply(number=front.engine.receive(wire.InfoRequest).number, info={}))
    quick.expect("info")
    tokens, last = slow.until_last("a")
    assert last["type"] == "done"
    assert len(tokens) < count, "some were merged"
    for message in tokens:
        assert message["logprobs"] == entries(message["ids"], 20)
    assert [id for message in tokens for id in message["ids"]] == list(chain(*ids))


@pytest.mark.parametrize("width", [0, 20])
def test_they_count_for_a_slow_reader(
    make_front: MakeFront, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """What waits is estimated at no less than its bytes, and not at much more."""
    encoded: list[tuple[int, int]] = []
    item = connections.WaitingTokens

    class Measured(item):  # type: ignore[valid-type, misc]
        def encode(self) -> bytes:
            frame: bytes = super().encode()
            encoded.append((self.size, len(frame)))
            return frame

    monkeypatch.setattr(connections, "WaitingTokens", Measured)
    front = make_front().start()
    slow, quick = front.client_with_short_queue(), front.client()
    opened = open_request(front, slow, logprobs=width)
    ids = list(range(300, 380)) * (2 if width else 20)
    logprobs = rows(ids, width)
    sent = 0
    while not front.engine.socket.poll(0):
        front.engine.emit(Entry(opened.request, ids, logprobs=logprobs))
        quick.send("ping", n=1)  # no faster than the front can take it
        quick.expect("pong")
        sent += 1
        assert sent < 5000
    front.engine.receive(wire.Close)
    front.engine.emit(Entry(opened.request, finish=Finish.ABORT))
    _, last = slow.until_last("a")
    assert last["code"] == "slow_consumer"
    assert all(size / 2 < length <= size for size, length in encoded)


def test_done_counts_what_it_collected(front: FrontUnderTest) -> None:
    sizes = []
    last = outbox.LastMessage

    def measured(request: Request, build: Callable[[], bytes], size: int) -> outbox.LastMessage:
        sizes.append((size, len(build())))
        return last(request, build, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "LastMessage", measured)
        client = front.client()
        fields = {"stream": False, "logprobs": 20, "prompt_logprobs": 20}
        opened = open_request(front, client, **fields)
        send_prompt(front, opened.request, 1, [6, 7], 20)
        ids = list(range(300, 340))
        front.engine.emit(Entry(opened.request, ids, finish=Finish.LENGTH, logprobs=rows(ids, 20)))
        assert len(client.expect("done")["logprobs"]) == 40
    ((size, length),) = sizes
    assert size < length < size + 600, "all but the fields that every done has"


def alive() -> int:
    gc.collect()
    return sum(type(item) in (Request, PackedList) for item in gc.get_objects())


def test_nothing_of_them_is_kept(front: FrontUnderTest) -> None:
    before = alive()
    client = front.client()
    for end in ("done", "failed", "cancelled"):
        opened = open_request(front, client, logprobs=20, prompt_logprobs=20, stream=False)
        send_prompt(front, opened.request, 1, [6, 7], 20)
        finish = {"done": Finish.LENGTH, "failed": Finish.FAILED}.get(end, Finish.ABORT)
        if end == "cancelled":
            client.send("cancel", id="a")
            assert len(client.expect("done", finish="abort")["prompt_logprobs"]) <= 2
        front.engine.emit(Entry(opened.request, finish=finish))
        if end != "cancelled":
            client.expect("error" if end == "failed" else "done", id="a")
    client.send("ping", n=1)
    client.expect("pong")
    assert alive() <= before
