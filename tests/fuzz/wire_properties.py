"""What every decoder of pdv_mp.wire must do with any bytes, and valid messages to start from.

An input is one byte that chooses the decoder, then the frame. Tests in other folders import this
file as ``fuzz.wire_properties``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from pydantic import ValidationError

from gateway.chat import ChatWriter
from gateway.errors import ApiError
from gateway.fields import ChatRequest, CompletionRequest
from gateway.jobs import chat_job, completion_job
from gateway.model_card import ModelCard
from pdv_mp.sampling_params import ParameterError, SamplingParams
from pdv_mp.wire import client_messages, control, engine, protocol, tokenize
from pdv_mp.wire.frames import HEADER, BatchStamps
from pdv_mp.wire.protocol import ErrorCode, ProtocolError


def check_client(frame: bytes) -> None:
    """A client's frame is refused with an ``error`` that can be sent, or taken; what was taken
    means the same when it is sent again."""
    try:
        message = client_messages.decode_client(frame)
    except ProtocolError as error:
        _check_refusal(error)
        return
    assert client_messages.decode_client(encode_client(message)) == message


def _check_refusal(refusal: ProtocolError) -> None:
    answer = protocol.decode_server(protocol.error(refusal.code, refusal.message, refusal.id))
    assert answer["code"] == refusal.code.value
    assert answer["id"] is None or 1 <= len(answer["id"]) <= protocol.MAX_ID_CHARACTERS
    assert answer["message"]
    assert len(answer["message"]) < 1000


def encode_client(message: client_messages.ClientMessage) -> bytes:
    """The frame of any client message."""
    if isinstance(message, client_messages.Generate):
        prompt = message.prompt_ids if message.prompt is None else message.prompt
        assert prompt is not None
        return protocol.generate(
            message.id,
            prompt,
            message.params,
            stream=message.stream,
            timeline=message.timeline,
            add_special_tokens=message.add_special_tokens,
        )
    return protocol.encode(type(message).__name__.lower(), **dataclasses.asdict(message))


def check_server(frame: bytes) -> None:
    """A server's frame is refused or a map with a type."""
    try:
        fields = protocol.decode_server(frame)
    except ProtocolError:
        return
    assert isinstance(fields["type"], str)


def check_control(frame: bytes) -> None:
    """A frame of the supervisor's edge is refused or a message that survives a round trip."""
    try:
        message = control.decode_control(frame)
    except control.ControlError:
        return
    again = _encoded(lambda: control.encode_control(message))
    if again is not None:
        assert control.encode_control(control.decode_control(again)) == again


def check_engine(frame: bytes) -> None:
    """A frame of the engine's edge is refused or a message that survives a round trip."""
    try:
        message, generation = engine.decode(frame, 0)
    except engine.WireError:
        return
    again = _encoded(lambda: bytes(engine.encode(message, generation, 1)))
    if again is not None:
        decoded, same = engine.decode(again, 0)
        body = HEADER.size
        assert (type(decoded), same) == (type(message), generation)
        assert bytes(engine.encode(decoded, generation, 1))[body:] == again[body:]


def check_tokenize(frame: bytes) -> None:
    """A frame of a tokenizer's edge is refused or a message that survives a round trip."""
    try:
        message, generation = tokenize.decode(frame, 0)
    except tokenize.WireError:
        return
    if isinstance(message, tokenize.Texts):
        assert sum(map(len, message.split())) == len(message.data)
    again = _encoded(lambda: bytes(tokenize.encode(message, generation, 1)))
    if again is not None:
        decoded, same = tokenize.decode(again, 0)
        body = HEADER.size
        assert (type(decoded), same) == (type(message), generation)
        assert bytes(tokenize.encode(decoded, generation, 1))[body:] == again[body:]


def _encoded(encode: Callable[[], bytes]) -> bytes | None:
    try:
        return encode()
    except ValueError as error:
        if "recursion limit" in str(error):  # msgpack reads deeper nesting than it writes
            return None
        raise


def check_http_body(body: bytes) -> None:
    """The body of an HTTP request is refused with an error that can be sent, or becomes a request
    that the protocol can send."""
    for kind, job_of in ((CompletionRequest, completion_job), (ChatRequest, chat_job)):
        try:
            fields = kind.model_validate(json.loads(body))
            job = job_of(fields, _CARD)  # type: ignore[operator]
        except (ValidationError, ValueError, RecursionError):
            continue
        except ApiError as error:
            _check_http_refusal(error)
            continue
        for number, prompt in enumerate(job.prompts):
            try:
                frame = protocol.generate("a", prompt, job.params_of(number * job.n))
            except ParameterError:  # half a character, an integer that no message can hold
                continue
            check_client(frame)


def _check_http_refusal(error: ApiError) -> None:
    assert 400 <= error.status < 500
    assert json.loads(error.body())["error"]["message"]


_CARD = ModelCard(
    instance="i",
    model="m",
    version="0",
    vocab_size=300,
    max_model_len=512,
    room=512,
    max_message_bytes=protocol.DEFAULT_MAX_MESSAGE_BYTES,
    chat=ChatWriter("{% for m in messages %}{{ m.role + m.content | trim }}{% endfor %}", {}),
    created=0,
)

CHECKS = (
    check_client,
    check_engine,
    check_control,
    check_server,
    check_tokenize,
    check_http_body,
)


def check(data: bytes) -> None:
    """Hand an input to the decoder that its first byte names."""
    if data:
        CHECKS[data[0] % len(CHECKS)](data[1:])


def seeds() -> list[bytes]:
    """One input or more for every type of message of every decoder."""
    frames = (
        _client_frames(),
        _engine_frames(),
        _control_frames(),
        _server_frames(),
        _tokenize_frames(),
        _http_bodies(),
    )
    return [bytes((number,)) + frame for number, of in enumerate(frames) for frame in of]


def _client_frames() -> list[bytes]:
    full = SamplingParams(
        max_tokens=3,
        temperature=0.75,
        top_k=5,
        top_p=0.5,
        min_p=0.25,
        seed=-5,
        stop=("stop", "é"),
        stop_token_ids=(7, 300),
        ignore_eos=True,
        speculate=False,
        logprobs=2,
        prompt_logprobs=0,
    )
    return [
        protocol.generate("a", "text", SamplingParams()),
        protocol.generate("b", [1, 2, 70_000], full, stream=False, timeline=True),
        protocol.generate("c", "bare", SamplingParams(), add_special_tokens=False),
        protocol.encode("describe"),
        protocol.encode("detokenize", id="a", ids=[1, 2], bytes=True),
        protocol.encode("hello", client="c", token="t"),
        protocol.encode("cancel", id="a"),
        protocol.encode("ping", n=-3),
        protocol.encode("info"),
        protocol.encode("tokenize", id="a", prompt="text"),
        protocol.encode("detokenize", id="a", ids=[1, 2]),
        protocol.encode("info", unknown={"deep": [1, {"er": None}]}),
    ]


def _engine_frames() -> list[bytes]:
    column = np.arange(2, dtype=np.int32)
    logprobs = engine.LogprobColumns(
        chosen=np.array([-0.5, -1.5], np.float32),
        widths=np.array([1, 0], np.int32),
        top_ids=np.array([4], np.int32),
        top=np.array([-0.25], np.float32),
    )
    messages: list[engine.EngineMessage] = [
        engine.Open(
            request=2**40,
            prompt_ids=np.array([1, 2, 3], np.int32),
            max_tokens=9,
            sampling=(0.7, 40, 0.9, 0.05, 2**52),
            stop_ids=(0, 7),
            speculate=True,
            report_timeline=True,
            timeline=[1, 2, 3, [], []],
        ),
        engine.Close(requests=np.array([3, 2**41], np.int64)),
        engine.Tokens(
            requests=np.array([5, 6], np.int64),
            queued_ns=np.array([7, 8], np.int64),
            counts=np.array([2, 0], np.int32),
            drafted=column,
            accepted=column,
            finish=column,
            stop_ids=column,
            cached=column,
            ids=column,
            timelines=[(0, [5, 6])],
            messages=[(1, "why")],
            logprobs=logprobs,
        ),
        engine.PromptLogprobs(request=4, start=1, logprobs=logprobs),
        engine.EngineReady(facts={"credits": 39, "eos_ids": [0]}),
        engine.InfoRequest(number=4),
        engine.InfoReply(number=4, info={"counters": {"tokens": 1}}),
    ]
    assert {type(message) for message in messages} == set(engine.CODEC.types)
    return [bytes(engine.encode(message, 1, 2)) for message in messages]


def _control_frames() -> list[bytes]:
    values: dict[Any, Any] = {str: "worker-0", int: 3, dict: {"eos_ids": [0], "pid": 7}}
    return [
        control.encode_control(
            kind(**{field: values[hint] for field, hint in control._FIELDS[name].items()})
        )
        for name, kind in control._TYPES.items()
    ]


def _server_frames() -> list[bytes]:
    return [
        protocol.accepted("a", 3, 5),
        protocol.tokens("a", 0, 0, [5, 6], [1, 0], "é"),
        protocol.error(ErrorCode.QUEUE_FULL, "full", "a", retry_after_ms=5),
        protocol.encode("done", id="a", finish="stop", stop_reason=None, usage={}),
        protocol.encode("pong", n=1, instance="i", connection=1),
        protocol.encode("alive", instance="i", connection=1),
    ]


def _tokenize_frames() -> list[bytes]:
    messages: list[tokenize.TokenizerMessage] = [
        tokenize.TokenizerReady(facts={"fingerprint": "f", "processes": {"tokenizer-0": 7}}),
        tokenize.Texts.of([1, 2**40], [b"text", "é".encode()]),
        tokenize.Ids(
            keys=np.array([1, 2, 3], np.int64),
            counts=np.array([2, tokenize.FAILED, 0], np.int32),
            ids=np.array([5, 6], np.int32),
            batch=BatchStamps(1, 2, 3),
            orders=np.arange(12, dtype=np.int64).reshape(3, 4),
            busy_ns=np.zeros(3, np.int64),
        ),
    ]
    assert {type(message) for message in messages} == set(tokenize.CODEC.types)
    return [bytes(tokenize.encode(message, 1, 2)) for message in messages]


def _http_bodies() -> list[bytes]:
    parts = [{"type": "text", "text": "x"}, {"type": "text", "text": "é"}]
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": parts}]
    sampling = {"n": 2, "seed": 5, "stop": ["a"], "top_p": 0.5, "stream": True, "logit_bias": {}}
    bodies: list[dict[str, Any]] = [
        {"prompt": "x", "max_tokens": 3, "logprobs": 2, "echo": True},
        {"prompt": [[1, 2], [3]], "stream_options": {"include_usage": True}, **sampling},
        {"prompt": ["a", "b"], "temperature": 0, "pdv": {"tokens": True}},
        {"messages": messages, "top_logprobs": 2, "logprobs": True, **sampling},
    ]
    return [json.dumps(body).encode() for body in bodies]
