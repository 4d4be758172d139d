"""Whatever is sent gets an answer in the form of errors, never a 5xx, and harms nobody."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ValidationError
from raw_http import connect, exchange, request, rest, status

from gateway.fields import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

COMPLETIONS = "/v1/completions"
CHATS = "/v1/chat/completions"

BAD: list[tuple[str, dict[str, Any], str]] = [
    (COMPLETIONS, {"prompt": "x", "max_tokens": value}, "max_tokens")
    for value in (0, -1, 10**9, 2**64, "x", True, 1.5)
]
BAD += [
    (COMPLETIONS, {"prompt": "x", name: value}, name)
    for name, value in (
        ("temperature", -1),
        ("temperature", 1e308),
        ("temperature", "1"),
        ("top_p", 0),
        ("top_p", 2),
        ("min_p", 1),
        ("top_k", -2),
        ("seed", 2**64),
        ("n", 0),
        ("n", 10**6),
        ("best_of", 4),
        ("logprobs", 21),
        ("logprobs", -1),
        ("stop", ["x"] * 17),
        ("stop", ["x"] * 10**5),
        ("stop", 1),
        ("stop", [1]),
        ("stop", ["x" * 257]),
        ("stop_token_ids", [2**40]),
        ("stream", "yes"),
        ("frequency_penalty", 0.1),
        ("presence_penalty", -0.1),
        ("logit_bias", {"5": 1}),
        ("suffix", "y"),
        ("min_tokens", 1),
        ("response_format", {"type": "json_object"}),
        ("guided_json", {"type": "object"}),
        ("prompt_logprobs", 1),
        ("use_beam_search", True),
        ("pdv", 5),
    )
]
BAD += [
    (COMPLETIONS, {"prompt": prompt}, "prompt")
    for prompt in (
        None,
        "",
        5,
        [],
        {},
        [True],
        ["x", 5],
        [[1], ["x"]],
        [[]],
        [-1],
        [300],
        [2**31],
        [2**70],
        ["x"] * 1025,
        "\ud800",
        "x" * 100_000,
    )
]
BAD += [
    (CHATS, {"messages": messages}, "messages")
    for messages in (
        None,
        [],
        "hi",
        [{"content": "x"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}],
        [{"role": "assistant", "tool_calls": [{"id": "1"}]}],
    )
]
BAD += [
    (CHATS, {"messages": [{"role": "user", "content": "x"}], name: value}, name)
    for name, value in (
        ("tools", [{"type": "function"}]),
        ("chat_template", "{{ 1 }}"),
        ("chat_template_kwargs", {"x": 1}),
        ("continue_final_message", True),
        ("top_logprobs", 3),
        ("max_completion_tokens", 0),
        ("echo", True),
    )
]


def wire(body: dict[str, Any]) -> bytes:
    """JSON with what Python refuses to encode, such as half a character."""
    return json.dumps(body).encode()


@pytest.mark.parametrize(("path", "body", "field"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_field_is_named(url: str, path: str, body: dict[str, Any], field: str) -> None:
    answer = httpx.post(
        url + path, content=wire(body), headers={"content-type": "application/json"}, timeout=60
    )
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] in ("bad_request", "too_large", "context_length_exceeded")
    assert error["param"] in (field, None)
    assert field in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"5",
        b'"x"',
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": Infinity}',
        b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": "x", "pdv": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b', "n": 0}',
    ],
    ids=lambda body: body[:30].decode("latin-1"),
)
def test_bodies_that_are_no_requests(url: str, body: bytes) -> None:
    answer = exchange(url, request(COMPLETIONS, body))
    assert status(answer) == 400, answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_request"


def test_unknown_fields_null_and_neutral_values_are_fine(http: httpx.Client) -> None:
    body = {
        "prompt": "x",
        "max_tokens": 1,
        "temperature": None,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "best_of": 1,
        "response_format": {"type": "text"},
        "what_is_this": {"x": [1]},
        "user": "me",
        "stream_options": None,
    }
    assert http.post(COMPLETIONS, json=body).status_code == 200


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 100, (400,)),  # TLS
        (b"HELO gateway\r\n\r\n", (400,)),
        (
            b"GET /version HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
            (400, 431),
        ),
        (b"GET /version HTTP/1.1\r\nHost: x\r\n" + b"Xy: z\r\n" * 20_000 + b"\r\n", (400, 431)),
        (b"GET /version HTTP/1.1\r\nHost: x\r\n" + b"Xy: z\r\n" * 300 + b"\r\n", (431,)),
        (b"GET /version HTTP/1.1\r\nConnection: close\r\n\r\n", (400,)),  # no Host
        (b"CONNECT gateway:443 HTTP/1.1\r\nHost: gateway\r\n\r\n", (400,)),
        (b"CONNECT / HTTP/1.1\r\nHost: gateway\r\n\r\n", (400,)),
        (b"CONNECT http://gateway/x HTTP/1.1\r\nHost: gateway\r\n\r\n", (400,)),
        (b"GET /version HTTP/1.1\r\nHost: x\r\nHost: y\r\nConnection: close\r\n\r\n", (400,)),
        (request("/../../etc/passwd"), (404,)),
        (request("/%2e%2e/%2e%2e/etc/passwd"), (404,)),
        (request("/v1/../health"), (404,)),
        (request("//v1/models"), (404,)),
        (request("/\x00".replace("\x00", "%00")), (404,)),
        (request("/v1/completions"), (405,)),
        (request("/health", method="DELETE"), (405,)),
        (request("/v1/models/..%2f..%2fetc"), (404,)),
        (request(COMPLETIONS, b'{"prompt":"x"}', "Transfer-Encoding: chunked"), (400,)),
    ],
)
def test_what_is_hardly_http(url: str, data: bytes, expected: tuple[int, ...]) -> None:
    answer = exchange(url, data)
    assert status(answer) in expected, answer[:300]
    assert b'"error"' in answer


def test_a_body_that_is_too_large_is_refused_before_it_is_read(url: str) -> None:
    head = request(COMPLETIONS, b"x").replace(b"Content-Length: 1", b"Content-Length: 10000000000")
    assert status(exchange(url, head)) == 413
    chunk = b"%x\r\n" % 65536 + b"x" * 65536 + b"\r\n"
    chunked = request(COMPLETIONS, b"x")[:-1].replace(b"Content-Length: 1\r\n", b"")
    chunked = chunked[:-2] + b"Transfer-Encoding: chunked\r\n\r\n"
    with connect(url) as connection:
        connection.sendall(chunked)
        answer = b""
        for _ in range(10_000):  # 640 MB, if nobody stops it
            try:
                connection.sendall(chunk)
            except OSError:
                break
        else:
            pytest.fail("nobody stopped it")
        answer = rest(connection)
    assert not answer or status(answer) == 413


def test_what_is_not_declared_as_json_is_refused(http: httpx.Client) -> None:
    answer = http.post(
        COMPLETIONS, content=b'{"prompt":"x"}', headers={"content-type": "text/plain"}
    )
    assert answer.status_code == 400
    assert "application/json" in answer.json()["error"]["message"]


def test_pages_of_other_sites_are_refused(http: httpx.Client, url: str) -> None:
    other = http.get("/v1/models", headers={"origin": "http://evil.example"})
    assert other.status_code == 403
    assert http.get("/v1/models", headers={"origin": url}).status_code == 200


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (ChatRequest, {"messages": [0] * 1000}),
        (TokenizeRequest, {"messages": [0] * 1000}),
        (DetokenizeRequest, {"tokens": ["x"] * 1000}),
        (CompletionRequest, {"prompt": "x", "stop_token_ids": ["x"] * 1000}),
    ],
)
def test_of_a_wrong_list_one_element_is_told(model: type[BaseModel], body: dict[str, Any]) -> None:
    """A body may have millions, and each error is an object."""
    with pytest.raises(ValidationError) as raised:
        model.model_validate(body)
    assert raised.value.error_count() == 1


@pytest.mark.parametrize("prompt", ["word " * 40_000, [[1] * 50_000]])
def test_a_prompt_that_is_too_long_is_refused_before_it_was_sent_for_every_choice(
    http: httpx.Client, prompt: object
) -> None:
    def refusals() -> int:
        errors = http.get("/server_info").json()["counters"]["errors"]
        return int(errors["context_length_exceeded"] + errors["too_large"])

    before = refusals()
    answer = http.post(COMPLETIONS, json={"prompt": prompt, "n": 100, "max_tokens": 8})
    assert answer.status_code == 400, answer.text
    assert refusals() - before < 100
