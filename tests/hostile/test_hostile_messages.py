"""Messages that no client should send, to a real server: each gets its named error."""

from __future__ import annotations

import math
import pickle
import random
import struct
from typing import Any

import msgpack
import pytest
from front.front_harness import FakeClient
from hostile.attacked import Attacked
from tiny_model import CONTEXT, VOCABULARY


def pack(**fields: Any) -> bytes:
    packed: bytes = msgpack.packb({"v": 1, **fields})
    return packed


def refused(client: FakeClient, frames: list[bytes], code: str, id: str | None = None) -> str:
    """Send frames; the next answer must be this error. Returns its message."""
    client.socket.send_multipart(frames)
    message: str = client.expect("error", id=id, code=code, retryable=False)["message"]
    assert 0 < len(message) < 500
    return message


def nested(depth: int) -> bytes:
    return b"\x84\xa1v\x01\xa4type\xa4info\xa1i\x01\xa1x" + b"\x91" * depth + b"\x01"


def long_list(element: bytes) -> bytes:
    count = 4_000_000 // len(element)
    head = b"\x83\xa1v\x01\xa4type\xa4info\xa1x\xdd"
    return head + struct.pack(">I", count) + element * count


GOOD = {"type": "generate", "id": "a", "prompt": "x", "max_tokens": 2}

FRAMES: dict[str, list[bytes]] = {
    "empty": [b""],
    "empty frames": [b"", b""],
    "two frames": [pack(**GOOD), pack(**GOOD)],
    "100 frames": [b""] * 100,
    "100 good frames": [pack(**GOOD)] * 100,
    "pickle": [pickle.dumps({"v": 1, "type": "info", "code": FakeClient})],
    "not a map": [msgpack.packb([1, "generate"])],
    "a text": [msgpack.packb("generate")],
    "trailing bytes": [pack(**GOOD) + b"\0"],
    "truncated": [pack(**GOOD)[:-1]],
    "false map length": [b"\xdf\xff\xff\xff\xff"],
    "false array length": [b"\x81\xa1x\xdd\xff\xff\xff\xff"],
    "false text length": [b"\x81\xa1x\xdb\xff\xff\xff\xff"],
    "17 levels": [nested(17)],
    "1,000,000 levels": [nested(1_000_000)],
    "millions of lists": [long_list(b"\x90")],
    "millions of maps": [long_list(b"\x80")],
    "a map of many keys": [msgpack.packb({str(n): n for n in range(2000)})],
    "extension": [pack(type="info", x=msgpack.ExtType(5, b"x"))],
    "timestamp": [pack(type="info", x=msgpack.Timestamp(1))],
    "not a number": [pack(type="info", x=math.nan)],
    "infinite": [pack(type="info", x=[math.inf])],
    "bytes": [pack(type="info", x=b"bytes")],
    "large integer": [pack(type="info", x={"y": 2**53})],
    "bytes key": [b"\x83\xa1v\x01\xa4type\xa4info\xc4\x01x\x01"],
    "integer key": [b"\x83\xa1v\x01\xa4type\xa4info\x01\x01"],
    "key twice": [b"\x83\xa1v\x01\xa4type\xa4info\xa1v\x01"],
    "bad UTF-8": [b"\x83\xa1v\x01\xa4type\xa4info\xa1x\xa1\xff"],
    "unknown type": [pack(type="shutdown")],
    "a server's type": [pack(type="done", n=1)],
    "id of 10^6 characters": [pack(**{**GOOD, "id": "x" * 10**6})],
    "cancel of such an id": [pack(type="cancel", id="x" * 10**6)],
}


@pytest.mark.parametrize("frames", FRAMES.values(), ids=FRAMES.keys())
def test_a_frame_that_is_no_message(attacked: Attacked, frames: list[bytes]) -> None:
    client = attacked.client()
    refused(client, frames, "bad_request")
    attacked.check_served(client)


def test_random_bytes(attacked: Attacked) -> None:
    client = attacked.client()
    generator = random.Random(2)
    for _ in range(500):
        data = generator.randbytes(generator.randrange(200))
        refused(client, [data], "bad_request")


TEXT = [1, 1.5, True, [], ["x"], {}]
INTEGER = ["1", 1.5, True, [], [1], {}]
NUMBER = ["1", True, [], [1], {}]
BOOLEAN = [0, 1, 0.5, "yes", [], {}]
IDS = ["x", 1, True, {}, [1.5], [True], ["1"], [[1]], [None], [{}]]
TEXTS = ["x", 1, {}, [1], [None], [[]], [True], [""]]

FIELDS: dict[str, dict[str, list[Any]]] = {
    "hello": {"client": TEXT, "token": TEXT},
    "generate": {
        "id": [*TEXT, None, ""],
        "prompt": TEXT,
        "prompt_ids": IDS,
        "max_tokens": INTEGER,
        "temperature": NUMBER,
        "top_k": INTEGER,
        "top_p": NUMBER,
        "min_p": NUMBER,
        "seed": INTEGER,
        "stop": TEXTS,
        "stop_token_ids": IDS,
        "ignore_eos": BOOLEAN,
        "logprobs": INTEGER,
        "prompt_logprobs": INTEGER,
        "speculate": BOOLEAN,
        "stream": BOOLEAN,
        "timeline": BOOLEAN,
    },
    "cancel": {"id": [*TEXT, None, ""]},
    "ping": {"n": [*INTEGER, None]},
    "info": {},
    "tokenize": {"id": [*TEXT, None, ""], "prompt": [*TEXT, None]},
    "detokenize": {"id": [*TEXT, None, ""], "ids": [*IDS, None]},
}
OTHERS: dict[str, dict[str, Any]] = {
    "hello": {},
    "generate": {"id": "a", "prompt": "x"},
    "cancel": {"id": "a"},
    "ping": {"n": 1},
    "info": {},
    "tokenize": {"id": "a", "prompt": "x"},
    "detokenize": {"id": "a", "ids": [1]},
}


@pytest.mark.parametrize("kind", FIELDS)
def test_every_field_of_a_wrong_type(attacked: Attacked, kind: str) -> None:
    client = attacked.client()
    for name, wrong in {"type": [*TEXT, None], "v": [*INTEGER, None], **FIELDS[kind]}.items():
        for value in wrong:
            fields = {"v": 1, "type": kind, **OTHERS[kind], name: value}
            if name == "prompt_ids":
                fields["prompt"] = None
            id = None if name == "id" else fields.get("id")
            message = refused(client, [msgpack.packb(fields)], "bad_request", id)
            assert name in message, (name, value)


OUT_OF_RANGE: list[tuple[str, dict[str, Any], str]] = [
    ("prompt", {"prompt": ""}, "bad_request"),
    ("prompt_ids", {"prompt_ids": []}, "bad_request"),
    ("prompt_ids", {"prompt_ids": [-1]}, "bad_request"),
    ("prompt_ids", {"prompt_ids": [VOCABULARY]}, "bad_request"),
    ("prompt_ids", {"prompt_ids": [1, 2**31]}, "bad_request"),
    ("prompt_ids", {"prompt_ids": [2**53 - 1]}, "bad_request"),
    ("prompt", {"prompt": None}, "bad_request"),
    ("prompt", {"prompt": "x", "prompt_ids": [1]}, "bad_request"),
    ("prompt", {"prompt": "x" * 10**6}, "too_large"),
    ("prompt_ids", {"prompt_ids": [1] * CONTEXT}, "too_large"),
    ("prompt_ids", {"prompt_ids": [1] * 10**6}, "too_large"),
    ("max_tokens", {"max_tokens": 0}, "bad_request"),
    ("max_tokens", {"max_tokens": -5}, "bad_request"),
    ("max_tokens", {"max_tokens": CONTEXT}, "too_large"),
    ("max_tokens", {"max_tokens": 2**53 - 1}, "too_large"),
    ("max_tokens", {"prompt_ids": [1] * 12, "max_tokens": 501}, "context_length_exceeded"),
    ("temperature", {"temperature": -0.01}, "bad_request"),
    ("temperature", {"temperature": 10.01}, "bad_request"),
    ("temperature", {"temperature": 1e300}, "bad_request"),
    ("top_k", {"top_k": -2}, "bad_request"),
    ("top_p", {"top_p": 0}, "bad_request"),
    ("top_p", {"top_p": 1.01}, "bad_request"),
    ("min_p", {"min_p": -0.01}, "bad_request"),
    ("min_p", {"min_p": 1}, "bad_request"),
    ("seed", {"seed": 2**53}, "bad_request"),
    ("seed", {"seed": -(2**63)}, "bad_request"),
    ("logprobs", {"logprobs": 21}, "bad_request"),
    ("logprobs", {"logprobs": -1}, "bad_request"),
    ("prompt_logprobs", {"prompt_logprobs": 21}, "bad_request"),
    ("stop", {"stop": ["x"] * 17}, "too_large"),
    ("stop", {"stop": ["x" * 257]}, "bad_request"),
    ("stop_token_ids", {"stop_token_ids": [1] * 17}, "bad_request"),
    ("stop_token_ids", {"stop_token_ids": [-1]}, "bad_request"),
]


def test_numbers_out_of_range(attacked: Attacked) -> None:
    client = attacked.client()
    for name, fields, code in OUT_OF_RANGE:
        if "prompt" not in fields and "prompt_ids" not in fields:
            fields = {"prompt": "x", **fields}
        assert name in refused(client, [pack(type="generate", id="a", **fields)], code, "a")
    for ids, code in (
        ([VOCABULARY], "bad_request"),
        ([-1], "bad_request"),
        ([1] * (CONTEXT + 1), "too_large"),
    ):
        assert "ids" in refused(client, [pack(type="detokenize", id="a", ids=ids)], code, "a")
    message = pack(type="tokenize", id="a", prompt="x" * 10**6)
    assert "prompt" in refused(client, [message], "too_large", "a")
    for version in (0, 2, -1):
        message = msgpack.packb({"v": version, "type": "info", "id": "a"})
        assert "v " in refused(client, [message], "unsupported_version", "a")


def test_extremes_that_are_allowed(attacked: Attacked) -> None:
    client = attacked.client()
    for number, fields in enumerate(
        (
            {"prompt_ids": [VOCABULARY - 1] * (CONTEXT - 1), "max_tokens": 1},
            {"prompt_ids": [0], "max_tokens": CONTEXT - 1, "ignore_eos": True, "stream": False},
            {"prompt": "\U0001f642\0￿ \N{COMBINING ACUTE ACCENT}", "temperature": 10},
            {"prompt": "x", "temperature": 5e-324, "max_tokens": 8},
            {"prompt": "x", "temperature": 10, "top_p": 5e-324, "max_tokens": 8},
            {"prompt": "x", "temperature": 1, "min_p": 0.9999999999999999, "max_tokens": 8},
            {"prompt": "x", "temperature": 1, "top_k": 2**53 - 1, "max_tokens": 8},
            {"prompt": "x", "temperature": 1, "seed": -(2**53) + 1, "max_tokens": 8},
            {"prompt": "x", "stop": ["x" * 256] * 16, "stop_token_ids": [2**31 - 1] * 16},
        )
    ):
        client.send("generate", id=str(number), **fields)
        assert client.until_last(str(number))[1]["type"] == "done", fields


def test_a_duplicate_of_an_open_request(attacked: Attacked) -> None:
    client = attacked.client()
    client.send("generate", id="a", prompt="def", max_tokens=300, ignore_eos=True)
    for _ in range(50):
        client.send("generate", id="a", prompt="other", max_tokens=300)
    received = []
    while not received or received[-1]["type"] != "done":
        received.append(client.receive())
    kinds = [item["type"] for item in received]
    assert {item["id"] for item in received} == {"a"}
    assert [item["code"] for item in received if item["type"] == "error"] == ["duplicate_id"] * 50
    assert (kinds.count("accepted"), kinds.count("done")) == (1, 1)
    assert received[-1]["usage"]["completion_tokens"] == 300
    attacked.check_served(client)


def test_a_message_over_twice_the_limit_closes_the_connection(attacked: Attacked) -> None:
    client = attacked.client()
    client.send("ping", n=0)
    first = client.expect("pong")["connection"]
    refused(client, [pack(type="info", x="x" * 5_000_000)], "too_large")
    client.socket.send(pack(type="info", x="x" * 10_000_000))
    for number in range(1, 100):  # libzmq connects again; what was queued before is lost
        client.send("ping", n=number)
        if client.socket.poll(100):
            break
    assert client.expect("pong")["connection"] != first
    attacked.check_served(attacked.client())


def test_cancels_of_what_is_not_open(attacked: Attacked) -> None:
    client = attacked.client()
    client.send("generate", id="a", prompt="def", max_tokens=400, ignore_eos=True)
    client.expect("accepted", id="a")
    for id in ("a", "a", "b", "x" * 128) * 20:
        client.send("cancel", id=id)
    assert client.until_last("a")[1]["finish"] == "abort"
    client.send("cancel", id="a")
    client.send("ping", n=4)
    client.expect("pong", n=4)
