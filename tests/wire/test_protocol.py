"""Client frames: what is accepted, what is refused and how the refusal names it."""

from __future__ import annotations

import math
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdv_mp.sampling_params import SamplingParams
from pdv_mp.wire import client_messages, protocol
from pdv_mp.wire.client_messages import decode_client
from pdv_mp.wire.protocol import ErrorCode, ProtocolError


def frame(**fields: Any) -> bytes:
    packed: bytes = msgpack.packb({"v": 1, **fields})
    return packed


def refused(data: bytes, **options: Any) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        decode_client(data, **options)
    return caught.value


def generate(**fields: Any) -> bytes:
    return frame(type="generate", **{"id": "a", "prompt": "x", **fields})


def test_generate_with_defaults() -> None:
    assert decode_client(generate()) == client_messages.Generate(
        id="a", prompt="x", prompt_ids=None, params=SamplingParams(), stream=True, timeline=False
    )


def test_generate_with_everything() -> None:
    message = decode_client(
        generate(
            prompt=None,
            prompt_ids=[1, 2],
            max_tokens=3,
            temperature=1,
            top_k=-1,
            top_p=0.5,
            min_p=0.25,
            seed=-5,
            stop=["x", "yy"],
            stop_token_ids=[7],
            ignore_eos=True,
            logprobs=0,
            prompt_logprobs=20,
            speculate=False,
            stream=False,
            timeline=True,
            something_new={"deep": [1, {"er": None}]},
        )
    )
    params = SamplingParams(
        max_tokens=3,
        temperature=1,
        top_k=-1,
        top_p=0.5,
        min_p=0.25,
        seed=-5,
        stop=("x", "yy"),
        stop_token_ids=(7,),
        ignore_eos=True,
        speculate=False,
        logprobs=0,
        prompt_logprobs=20,
    )
    assert message == client_messages.Generate(
        id="a", prompt=None, prompt_ids=[1, 2], params=params, stream=False, timeline=True
    )


def test_the_other_messages() -> None:
    assert decode_client(frame(type="hello")) == client_messages.Hello()
    assert decode_client(frame(type="hello", client="c", token="t")) == client_messages.Hello(
        client="c", token="t"
    )
    assert decode_client(frame(type="cancel", id="a")) == client_messages.Cancel(id="a")
    assert decode_client(frame(type="ping", n=-3)) == client_messages.Ping(n=-3)
    assert decode_client(frame(type="info")) == client_messages.Info()
    assert decode_client(frame(type="tokenize", id="a", prompt="")) == client_messages.Tokenize(
        id="a", prompt=""
    )
    assert decode_client(frame(type="detokenize", id="a", ids=[])) == client_messages.Detokenize(
        id="a", ids=[]
    )


BAD_FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("max_tokens", {"max_tokens": 0}),
    ("max_tokens", {"max_tokens": -1}),
    ("max_tokens", {"max_tokens": True}),
    ("max_tokens", {"max_tokens": "8"}),
    ("max_tokens", {"max_tokens": 8.0}),
    ("max_tokens", {"max_tokens": 2**63}),
    ("temperature", {"temperature": -0.1}),
    ("temperature", {"temperature": 10.5}),
    ("temperature", {"temperature": math.nan}),
    ("temperature", {"temperature": math.inf}),
    ("temperature", {"temperature": "hot"}),
    ("temperature", {"temperature": False}),
    ("top_k", {"top_k": -2}),
    ("top_k", {"top_k": 1.5}),
    ("top_p", {"top_p": 0}),
    ("top_p", {"top_p": 2}),
    ("min_p", {"min_p": 1}),
    ("min_p", {"min_p": -1}),
    ("seed", {"seed": 2**53}),
    ("seed", {"seed": -(2**53)}),
    ("seed", {"seed": "lucky"}),
    ("stop", {"stop": "x"}),
    ("stop", {"stop": [""]}),
    ("stop", {"stop": ["x" * 257]}),
    ("stop", {"stop": [1]}),
    ("stop_token_ids", {"stop_token_ids": [-1]}),
    ("stop_token_ids", {"stop_token_ids": [1] * 17}),
    ("stop_token_ids", {"stop_token_ids": 3}),
    ("ignore_eos", {"ignore_eos": 1}),
    ("speculate", {"speculate": "no"}),
    ("stream", {"stream": 0}),
    ("timeline", {"timeline": "yes"}),
    ("logprobs", {"logprobs": 21}),
    ("logprobs", {"logprobs": True}),
    ("logprobs", {"logprobs": 3.0}),
    ("prompt_logprobs", {"prompt_logprobs": -1}),
    ("prompt_logprobs", {"prompt_logprobs": [1]}),
    ("prompt", {"prompt": 3}),
    ("prompt", {"prompt": b"bytes"}),
    ("prompt_ids", {"prompt_ids": [1]}),
    ("prompt_ids", {"prompt": None}),
    ("prompt_ids", {"prompt": None, "prompt_ids": [1, 2.5]}),
    ("prompt_ids", {"prompt": None, "prompt_ids": [1, True]}),
    ("prompt_ids", {"prompt": None, "prompt_ids": [2**53]}),
    ("prompt_ids", {"prompt": None, "prompt_ids": "ids"}),
    ("extra", {"extra": math.nan}),
    ("extra", {"extra": {"deep": [2**60]}}),
    ("extra", {"extra": [b"bytes"]}),
    ("extension", {"extra": msgpack.ExtType(5, b"x")}),
    ("extra", {"extra": msgpack.Timestamp(1)}),
]


@pytest.mark.parametrize(("named", "fields"), BAD_FIELDS)
def test_a_bad_field_is_named(named: str, fields: dict[str, Any]) -> None:
    error = refused(generate(**fields))
    assert error.code is ErrorCode.BAD_REQUEST
    assert named in error.message
    assert error.id == (None if named == "extension" else "a")


@pytest.mark.parametrize("id", [None, "", "x" * 129, 5, b"a", ["a"]])
def test_a_bad_id(id: Any) -> None:
    error = refused(generate(id=id))
    assert (error.code, error.id) == (ErrorCode.BAD_REQUEST, None)
    assert "id" in error.message


def test_the_longest_id() -> None:
    assert isinstance(decode_client(generate(id="x" * 128)), client_messages.Generate)


@pytest.mark.parametrize("kind", [None, "", "nonsense", 3, "x" * 1000])
def test_unknown_types(kind: Any) -> None:
    error = refused(frame(type=kind, id="a"))
    assert (error.code, error.id) == (ErrorCode.BAD_REQUEST, "a")
    assert "type" in error.message
    assert len(error.message) < 200


def test_versions() -> None:
    for version in (0, 2, -1):
        error = refused(msgpack.packb({"v": version, "type": "ping", "n": 1, "id": "a"}))
        assert (error.code, error.id) == (ErrorCode.UNSUPPORTED_VERSION, "a")
    for version in (None, "1", 1.0, True):
        error = refused(msgpack.packb({"v": version, "type": "ping", "n": 1}))
        assert error.code is ErrorCode.BAD_REQUEST
        assert "v " in error.message


def test_sizes() -> None:
    data = generate(prompt="x" * 2000)
    assert refused(data, max_message_bytes=1000).code is ErrorCode.TOO_LARGE
    assert isinstance(decode_client(data, 3000), client_messages.Generate)
    error = refused(generate(stop=["x"] * 17))
    assert (error.code, error.id) == (ErrorCode.TOO_LARGE, "a")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


HOSTILE = {
    "empty": b"",
    "nil": b"\xc0",
    "not a map": msgpack.packb([1, 2]),
    "number": b"\x01",
    "trailing bytes": msgpack.packb({"v": 1}) + b"\x00",
    "truncated": generate()[:-1],
    "false length": b"\xdf\xff\xff\xff\xff",
    "false text length": b"\xdb\xff\xff\xff\xff",
    "integer key": msgpack.packb({1: 2}),
    "bytes key": msgpack.packb({b"v": 1}),
    "list key": b"\x81\x90\x01",
    "nil key": b"\x81\xc0\x01",
    "duplicate key": b"\x82\xa1v\x01\xa1v\x01",
    "nested duplicate key": b"\x81\xa1x\x82\xa1v\x01\xa1v\x01",
    "bad utf-8": b"\x81\xa1v\xa1\xff",
    "surrogate": b"\x81\xa1v\xa3\xed\xa0\x80",
    "reserved byte": b"\xc1",
    "timestamp": b"\x81\xa1v\xd6\xff\x00\x00\x00\x01",
    "deep": b"\x81\xa1x" + b"\x91" * 100_000 + b"\x01",
    "quite deep": frame(type="info", x=nested(100)),
    "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtin\x94.",
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}


def test_a_message_has_a_bounded_number_of_maps_and_lists() -> None:
    most = protocol.MAX_CONTAINERS - 2  # without the message itself and its list
    assert isinstance(decode_client(frame(type="info", x=[[]] * most)), client_messages.Info)
    for element in ([], {}):
        error = refused(frame(type="info", x=[element] * (most + 1)))
        assert "maps and lists" in error.message
    keys = {str(number): number for number in range(protocol.MAX_CONTAINERS + 1)}
    assert refused(frame(type="info", x=keys)).code is ErrorCode.BAD_REQUEST
    ids = list(range(100_000))
    assert isinstance(
        decode_client(generate(prompt=None, prompt_ids=ids)), client_messages.Generate
    )


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_frames(data: bytes) -> None:
    assert refused(data).code is ErrorCode.BAD_REQUEST


PING = frame(type="ping", n=1)[1:]  # without the count of its three pairs
SPOILED = {
    "twice": b"\x84" + PING + b"\xa1n\x01",
    "twice within": b"\x84" + PING + b"\xa1x\x82\xa1n\x01\xa1n\x01",
    "integer key": b"\x84" + PING + b"\x01\x01",
    "bytes key": b"\x84" + PING + b"\xc4\x01n\x01",
    "bytes key within": b"\x84" + PING + b"\xa1x\x81\xc4\x01n\x01",
    "trailing": b"\x83" + PING + b"\x01",
    "deep": b"\x84" + PING + b"\xa1x" + b"\x91" * 17 + b"\x01",
}


@pytest.mark.parametrize("data", SPOILED.values(), ids=SPOILED.keys())
def test_one_fault_spoils_a_good_message(data: bytes) -> None:
    assert isinstance(decode_client(b"\x83" + PING), client_messages.Ping)
    assert isinstance(decode_client(b"\x84" + PING + b"\xa1x\x01"), client_messages.Ping)
    assert refused(data).code is ErrorCode.BAD_REQUEST


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100))
def test_random_bytes_only_raise_protocol_errors(data: bytes) -> None:
    assert refused(data).code in (ErrorCode.BAD_REQUEST, ErrorCode.UNSUPPORTED_VERSION)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
KEYS = st.sampled_from([*protocol._DEFAULTS, "id", "prompt", "prompt_ids", "stream", "type", "v"])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_random_fields_are_taken_or_refused(fields: dict[str, Any]) -> None:
    data = msgpack.packb({"v": 1, "type": "generate", "id": "a", "prompt": "x", **fields})
    message: client_messages.ClientMessage | ProtocolError
    try:
        message = decode_client(data)
    except ProtocolError as error:
        message = error
    if isinstance(message, ProtocolError):
        assert message.message
        assert message.id is None or isinstance(message.id, str)
    elif isinstance(message, client_messages.Generate):
        assert (message.prompt is None) != (message.prompt_ids is None)


PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.none() | st.integers(1, 10**6),
    temperature=st.floats(0, 10),
    top_k=st.integers(-1, 100),
    top_p=st.floats(0.001, 1),
    min_p=st.floats(0, 0.999),
    seed=st.none() | st.integers(-(2**53) + 1, 2**53 - 1),
    stop=st.lists(st.text(min_size=1, max_size=9), max_size=16).map(tuple),
    stop_token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=16).map(tuple),
    ignore_eos=st.booleans(),
    speculate=st.booleans(),
    logprobs=st.none() | st.integers(0, 20),
    prompt_logprobs=st.none() | st.integers(0, 20),
)


@settings(max_examples=200, deadline=None)
@given(params=PARAMS, prompt=st.text() | st.lists(st.integers(0, 10**5)), flags=st.booleans())
def test_what_a_client_builds_is_read_back(
    params: SamplingParams, prompt: str | list[int], flags: bool
) -> None:
    data = protocol.generate("id", prompt, params, stream=flags, timeline=flags)
    message = decode_client(data)
    assert message == client_messages.Generate(
        id="id",
        prompt=prompt if isinstance(prompt, str) else None,
        prompt_ids=None if isinstance(prompt, str) else prompt,
        params=params,
        stream=flags,
        timeline=flags,
    )


def test_server_messages() -> None:
    message = protocol.decode_server(protocol.tokens("a", 0, 2, [5], [1], "é"))
    assert message == {
        "v": 1,
        "type": "tokens",
        "id": "a",
        "seq": 0,
        "offset": 2,
        "ids": [5],
        "drafted": [1],
        "text": "é",
    }
    message = protocol.decode_server(
        protocol.error(ErrorCode.QUEUE_FULL, "full", "a", retry_after_ms=5)
    )
    assert message["retryable"] is True
    assert message["retry_after_ms"] == 5
    assert protocol.decode_server(protocol.error(ErrorCode.INTERNAL, "m", retryable=False)) == {
        "v": 1,
        "type": "error",
        "id": None,
        "code": "internal",
        "message": "m",
        "retryable": False,
    }
    for data in (msgpack.packb({"v": 2, "type": "done"}), frame(), b"\xc1"):
        with pytest.raises(ProtocolError):
            protocol.decode_server(data)


def test_retryable_codes_are_those_of_the_table() -> None:
    retryable = {code.value for code in ErrorCode if code.retryable}
    assert retryable == {"queue_full", "draining", "lane_failed", "internal"}
