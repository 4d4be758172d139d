"""Tokens: who may say what, for how long, and what never leaves the front."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq
from front.front_harness import Entry, FakeClient, FrontUnderTest

from pdv_mp.client.client import Client, ServerError
from pdv_mp.client.client_core import ClientCore
from pdv_mp.config import ConfigError
from pdv_mp.front import connections
from pdv_mp.wire import engine as wire
from pdv_mp.wire import protocol
from pdv_mp.wire.client_messages import Hello, Info, decode_client
from pdv_mp.wire.engine import Finish
from pdv_mp.wire.protocol import ErrorCode

TOKEN = "correct horse battery stäple"
MakeFront = Callable[..., FrontUnderTest]

MESSAGES: list[dict[str, Any]] = [
    {"type": "generate", "id": "a", "prompt": "the"},
    {"type": "generate", "id": "a", "prompt": 5},
    {"type": "cancel", "id": "a"},
    {"type": "tokenize", "id": "a", "prompt": "the"},
    {"type": "detokenize", "id": "a", "ids": [1]},
    {"type": "info"},
    {"type": "nonsense", "id": "a"},
]


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text(TOKEN + "\n", encoding="utf-8")
    return path


@pytest.fixture
def guarded(make_front: MakeFront, token_file: Path) -> FrontUnderTest:
    """A front that asks for the token."""
    return make_front(token_file=str(token_file)).start()


def refused(client: FakeClient, message: dict[str, Any]) -> None:
    client.send(**message)
    client.expect("error", code="unauthenticated", id=message.get("id"), retryable=False)


def info(front: FrontUnderTest, client: FakeClient) -> dict[str, Any]:
    client.send("info")
    question = front.engine.receive(wire.InfoRequest)
    front.engine.send(wire.InfoReply(number=question.number, info={}))
    return client.expect("info")


def served(client: FakeClient) -> None:
    client.send("tokenize", id="t", prompt="the")
    client.expect("tokenized", id="t")


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message["type"])
def test_without_the_token_only_hello_and_ping_are_answered(
    guarded: FrontUnderTest, message: dict[str, Any]
) -> None:
    client = guarded.client()
    refused(client, message)
    client.send("ping", n=7)
    client.expect("pong", n=7)
    client.send("hello", client="c")
    client.expect("welcome")
    refused(client, message)
    assert not guarded.engine.socket.poll(50)


@pytest.mark.parametrize(
    "token", [TOKEN[:-1], TOKEN + "x", TOKEN.upper(), TOKEN + "\n", "x", "stäple" * 10_000]
)
def test_a_wrong_token_is_refused(guarded: FrontUnderTest, token: str) -> None:
    client = guarded.client()
    client.send("hello", token=token)
    error = client.expect("error", code="unauthenticated", id=None, retryable=False)
    assert token not in error["message"]
    assert TOKEN not in error["message"]
    refused(client, MESSAGES[0])
    client.send("hello", token=TOKEN)
    client.expect("welcome")
    served(client)


def test_an_empty_token_is_none(guarded: FrontUnderTest) -> None:
    client = guarded.client()
    client.send("hello", token="")
    client.expect("welcome")
    refused(client, MESSAGES[0])


def test_the_token_is_remembered_for_its_connection_alone(guarded: FrontUnderTest) -> None:
    friend, stranger = guarded.client(), guarded.client(guarded.ipc)
    friend.send("hello", token=TOKEN)
    friend.expect("welcome")
    refused(stranger, MESSAGES[0])
    served(friend)
    friend.send("hello")
    friend.expect("welcome")
    friend.send("hello", token="wrong")
    friend.expect("error", code="unauthenticated")
    served(friend)
    refused(stranger, MESSAGES[0])
    report = info(guarded, friend)
    assert report["counters"]["errors"]["unauthenticated"] == 3
    assert TOKEN not in repr(report)


def test_a_server_without_a_token_ignores_one(front: FrontUnderTest) -> None:
    client = front.client()
    served(client)
    client.send("hello", token="whatever")
    client.expect("welcome")
    served(client)


def test_a_stranger_cannot_cancel_what_a_friend_has_open(guarded: FrontUnderTest) -> None:
    friend, stranger = guarded.client(), guarded.client()
    friend.send("hello", token=TOKEN)
    friend.expect("welcome")
    friend.send("generate", id="same", prompt="the quick")
    friend.expect("accepted")
    opened = guarded.engine.receive(wire.Open)
    refused(stranger, {"type": "cancel", "id": "same"})
    guarded.engine.emit(Entry(opened.request, [5, 6], finish=Finish.LENGTH))
    _, done = friend.until_last("same")
    assert done["finish"] == "length"


def test_an_id_is_a_matter_of_its_connection(front: FrontUnderTest) -> None:
    first, second = front.client(), front.client()
    opened = {}
    for client in (first, second):
        client.send("generate", id="same", prompt="the", max_tokens=5)
        client.expect("accepted")
        opened[client] = front.engine.receive(wire.Open).request
    third = front.client()
    third.send("cancel", id="same")
    second.send("cancel", id="same")
    _, done = second.until_last("same")
    assert done["finish"] == "abort"
    assert front.engine.receive(wire.Close).requests.tolist() == [opened[second]]
    front.engine.emit(Entry(opened[second], [9]), Entry(opened[first], [5], finish=Finish.LENGTH))
    tokens, done = first.until_last("same")
    assert [item["ids"] for item in tokens] == [[5]]
    assert done["finish"] == "length"
    for client in (second, third):
        client.send("ping", n=1)
        client.expect("pong")


def test_strangers_do_not_push_out_a_friend(
    guarded: FrontUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_IDLE_CONNECTIONS", 8)
    friend = guarded.client()
    friend.send("hello", token=TOKEN)
    number = friend.expect("welcome")["connection"]
    for _ in range(30):
        stranger = guarded.client()
        stranger.send("ping", n=0)
        stranger.expect("pong")
    friend.send("ping", n=0)
    friend.expect("pong", connection=number)
    served(friend)


def test_a_forgotten_friend_says_hello_again(
    guarded: FrontUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_IDLE_CONNECTIONS", 8)
    plain = guarded.client()
    plain.send("hello", token=TOKEN)
    plain.expect("welcome")
    with Client(guarded.endpoint, token=TOKEN) as client:
        ids = client.tokenize("the")
        for _ in range(30):
            other = guarded.client()
            other.send("hello", token=TOKEN)
            other.expect("welcome")
        refused(plain, MESSAGES[0])
        assert client.tokenize("the") == ids
    plain.send("hello", token=TOKEN)
    plain.expect("welcome")
    assert info(guarded, plain)["counters"]["errors"]["unauthenticated"] == 2


def test_a_routing_id_of_ones_own_is_refused(front: FrontUnderTest) -> None:
    client = FakeClient(front.context, front.endpoint)
    client.socket.disconnect(front.endpoint)
    client.socket.setsockopt(zmq.ROUTING_ID, b"alice")
    client.socket.connect(front.endpoint)
    front.clients.append(client)
    for message in MESSAGES:
        client.send(**message)
        error = client.expect("error", code="bad_request", id=message.get("id"))
    client.send("generate", id="t", prompt="the")
    error = client.expect("error", code="bad_request", id="t")
    assert "routing id" in error["message"]
    client.send("ping", n=4)
    client.expect("pong", n=4)


class Impostor(FakeClient):
    """A client with a routing id that looks as if libzmq had made it."""

    def __init__(self, front: FrontUnderTest) -> None:
        super().__init__(front.context, front.endpoint)
        self.socket.disconnect(front.endpoint)
        self.socket.setsockopt(zmq.ROUTING_ID, b"\0\1\2\3\4")
        self.socket.connect(front.endpoint)
        front.clients.append(self)


def test_whoever_takes_the_routing_id_of_one_that_left_inherits_nothing(
    guarded: FrontUnderTest,
) -> None:
    friend = Impostor(guarded)
    friend.send("hello", token=TOKEN)
    number = friend.expect("welcome")["connection"]
    friend.send("generate", id="mine", prompt="the quick")
    friend.expect("accepted")
    opened = guarded.engine.receive(wire.Open)
    friend.socket.close(linger=0)
    while True:  # while the first is not gone, libzmq ignores the second
        impostor = Impostor(guarded)
        refusable = {"type": "cancel", "id": "mine"}
        impostor.send(**refusable)
        if impostor.socket.poll(200):
            break
        impostor.socket.close(linger=0)
    impostor.expect("error", code="unauthenticated", id="mine")
    assert guarded.engine.receive(wire.Close).requests.tolist() == [opened.request]
    guarded.engine.emit(Entry(opened.request, [5, 6], finish=Finish.ABORT))
    impostor.send("ping", n=3)
    assert impostor.expect("pong", n=3)["connection"] != number


# The Python client


def test_a_client_with_the_token_is_served(guarded: FrontUnderTest) -> None:
    with Client(guarded.endpoint, token=TOKEN) as client:
        assert client.hello()["model"] == "tiny"
        client.ping()
        assert client.detokenize(client.tokenize("the quick")) == "the quick"
        stream = client.generate("the quick")
        opened = guarded.engine.receive(wire.Open)
        guarded.engine.emit(Entry(opened.request, [5, 6], finish=Finish.LENGTH))
        assert stream.result().ids == [5, 6]


@pytest.mark.parametrize(
    ("token", "advice"),
    [
        (None, "Client(token=...)"),
        ("wrong" * 5, "check that it is the one in the server's --token-file"),
    ],
)
def test_a_client_without_the_right_token_is_told_what_to_do(
    guarded: FrontUnderTest, token: str | None, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Client(guarded.endpoint, token=token) as client:
        calls: list[Callable[[], object]] = [
            lambda: client.complete("the quick"),
            lambda: client.tokenize("the"),
            lambda: client.detokenize([1]),
            client.info,
        ]
        if token is not None:
            calls.append(client.hello)
        for call in calls:
            with pytest.raises(ServerError) as caught:
                call()
            assert caught.value.code == "unauthenticated"
            assert advice in str(caught.value)
            assert "wrongwrong" not in str(caught.value)
        client.ping()
    assert "pdv_mp.client.client_core" not in {record.name for record in caplog.records}


def test_questions_without_an_id_are_each_asked_again_once() -> None:
    core = ClientCore("tcp://127.0.0.1:1", 30.0, 5.0, None, TOKEN)
    core.connected(0.0)
    questions = [core.ask("info", 0.0), core.ask("info", 0.0), core.ask("ping", 0.0)]
    core.outgoing.clear()
    refusal = protocol.error(ErrorCode.UNAUTHENTICATED, "who are you?")
    for _ in range(2):
        core.receive(refusal, 0.0)
    sent = [decode_client(frame) for frame in core.outgoing]
    assert sent == 2 * [Hello(client="pdv_mp", token=TOKEN), Info()]
    assert not any(question.finished for question in questions)
    for _ in range(3):
        core.receive(refusal, 0.0)
    assert [question.error is None for question in questions] == [False, False, True]
    assert len(core.outgoing) == 4


@pytest.mark.parametrize("token", ["", "caf\udce9"])
def test_a_token_that_no_message_can_hold_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        Client(token=token)


# The start


def test_the_front_reads_the_file_itself(make_front: MakeFront, token_file: Path) -> None:
    token_file.chmod(0o644)
    front = make_front(token_file=str(token_file))
    front.thread.join(10)
    assert isinstance(front.error, ConfigError)
    assert "can be used by others" in str(front.error)


def test_the_front_refuses_to_be_exposed(make_front: MakeFront) -> None:
    front = make_front(host="0.0.0.0")
    front.thread.join(10)
    assert isinstance(front.error, ConfigError)
    assert "--token-file" in str(front.error)
    assert "--insecure" in str(front.error)


@pytest.mark.parametrize("secured", ["token_file", "insecure"])
def test_an_exposed_front_has_a_token_or_is_meant_so(
    make_front: MakeFront, token_file: Path, secured: str
) -> None:
    options = {"token_file": str(token_file), "insecure": True}
    front = make_front(host="0.0.0.0", **{secured: options[secured]}).start()
    client = front.client(front.endpoint.replace("0.0.0.0", "127.0.0.1"))
    if secured == "token_file":
        refused(client, MESSAGES[0])
        client.send("hello", token=TOKEN)
        client.expect("welcome")
    served(client)


def test_ipv6_is_served(make_front: MakeFront) -> None:
    front = make_front(host="::1").start()
    assert front.endpoint.startswith("tcp://[::1]:")
    with Client(front.endpoint) as client:
        assert client.tokenize("the")


# The logs


def test_no_token_is_logged(guarded: FrontUnderTest, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = guarded.client()
    for token in ("wrong" * 5, TOKEN):
        client.send("hello", token=token)
        client.receive()
    served(client)
    assert "gave a wrong token" in caplog.text
    assert TOKEN not in caplog.text
    assert "wrongwrong" not in caplog.text


PROMPT = "the quick MARKER\n" + "fox " * 8


@pytest.mark.parametrize("log_requests", [False, True])
def test_prompts_are_logged_only_when_asked_for(
    make_front: MakeFront, log_requests: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING if log_requests else logging.DEBUG)
    caplog.handler.setLevel(logging.DEBUG)
    front = make_front(log_requests=log_requests).start()
    client = front.client()
    client.send("generate", id="the-id", prompt=PROMPT, temperature=0.5, seed=77)
    client.expect("accepted")
    client.send("generate", id="ids", prompt_ids=[11, 222, 33], stop=["x" * 256] * 16)
    client.expect("accepted")
    client.send("generate", id="bad", prompt="MARKER", max_tokens=10**6)
    client.expect("error")
    assert ("MARKER" in caplog.text) is log_requests
    assert ("11, 222, 33" in caplog.text) is log_requests
    if log_requests:
        first = caplog.records[0].getMessage()
        assert first.startswith("request 1 (1/1): id 'the-id', connection 1, ")
        assert "temperature=0.5" in first
        assert r"the quick MARKER\nfox " in first
        assert "\n" not in first
        assert "request 2 (2/" in caplog.text
        assert all(len(record.getMessage().encode()) < 3500 for record in caplog.records)


def test_a_tokenizer_that_fails_logs_no_prompt(
    front: FrontUnderTest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        def encode(self, text: str, add_special_tokens: bool) -> None:
            fail(text)

    def fail(text: str) -> None:
        raise RuntimeError(f"cannot encode {text!r}")

    codec_of = "pdv_mp.front.text.TextCodec.tokenizer"
    monkeypatch.setattr(codec_of, property(lambda self: Failing()), raising=False)
    client = front.client()
    client.send("generate", id="a", prompt=PROMPT)
    error = client.expect("error", code="internal", id="a")
    assert "MARKER" not in error["message"]
    assert f"tokenizing {len(PROMPT)} characters failed: RuntimeError" in caplog.text
    assert "in fail" in caplog.text
    assert "MARKER" not in caplog.text
