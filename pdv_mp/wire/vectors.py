"""Golden vectors of the client protocol: ``python -m pdv_mp.wire.vectors`` prints
``docs/protocol_vectors.json``.

Each is a message and the bytes that this implementation writes for it. No number with a fraction is
whole, since a language with one type of number cannot tell 1.0 from 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from pdv_mp.sampling_params import SamplingParams
from pdv_mp.wire import protocol
from pdv_mp.wire.logprobs import pack_logprobs
from pdv_mp.wire.protocol import ErrorCode

_ABOUT = (
    "Messages of docs/protocol.md and their bytes in hexadecimal, made by `python -m "
    "pdv_mp.wire.vectors > docs/protocol_vectors.json`. Any implementation must read the bytes as "
    "these messages. Of a client's messages a shortest encoding in the order of the keys gives the "
    "same bytes; a server may write the numbers of log-probabilities longer. The server refuses "
    "the frames of `refused` with an error of that code."
)

_EVERY_PARAMETER = SamplingParams(
    max_tokens=64,
    temperature=0.7,
    top_k=40,
    top_p=0.95,
    min_p=0.05,
    seed=2**53 - 1,
    stop=("\n\n", "»"),
    stop_token_ids=(3, 70000),
    ignore_eos=True,
    speculate=False,
    logprobs=2,
    prompt_logprobs=0,
)

_INSTANCE = {"instance": "00f1e2d3c4b5a697", "connection": 3}


def client_frames() -> Iterator[tuple[str, bytes]]:
    """A name and a frame for each message that clients send."""
    encode, generate = protocol.encode, protocol.generate
    yield "hello", encode("hello", client="an example")
    yield "hello with a token", encode("hello", client="an example", token="0123456789abcdef")
    yield "generate: text", generate("r1", "def f(é):  # 日本 🙂", SamplingParams())
    ids = [0, 127, 128, 255, 256, 65535, 65536, 2**31 - 1]
    yield (
        "generate: ids, every parameter",
        generate(
            "r2", ids, _EVERY_PARAMETER, stream=False, timeline=True, add_special_tokens=False
        ),
    )
    yield "generate: a negative seed", generate("r3", "x", SamplingParams(seed=-(2**53) + 1))
    yield "cancel", encode("cancel", id="r1")
    yield "ping", encode("ping", n=-129)
    yield "info", encode("info")
    yield "info without batches", encode("info", batches=0)
    yield "tokenize", encode("tokenize", id="t1", prompt="a\tb\u0000c")
    bare = {"prompt": "<s>a", "add_special_tokens": False}
    yield "tokenize without special tokens", encode("tokenize", id="t2", **bare)
    yield "detokenize", encode("detokenize", id="d1", ids=[1, 2, 300])
    yield "detokenize to bytes", encode("detokenize", id="d2", ids=[1], bytes=True)
    yield "describe", encode("describe")


def server_frames() -> Iterator[tuple[str, bytes]]:
    """A name and a frame for each message that servers send."""
    encode = protocol.encode
    limits = {
        "max_tokens": 2047,
        "max_prompt_tokens": 2047,
        "max_open_requests": 1024,
        "max_message_bytes": 4194304,
    }
    yield (
        "welcome",
        encode(
            "welcome",
            server="pdv_mp",
            version="0.1.0",
            **_INSTANCE,
            model="verifier",
            draft_model=None,
            topology="pdv",
            vocab_size=4096,
            eos_ids=[0],
            max_model_len=2048,
            limits=limits,
        ),
    )
    yield "accepted", protocol.accepted("r1", 9, 2**53 - 1)
    yield "tokens", protocol.tokens("r1", 0, 0, [17, 4000], [1, 0], "naïve 🙂")
    yield "tokens: text without ids", protocol.tokens("r1", 2, 5, [], [], "\n")
    top = np.array([[9, 8]]), np.array([[-0.5, -1.25]], np.float32)
    logprobs = pack_logprobs([9], np.array([-0.5], np.float32), *top)
    yield "tokens with logprobs", protocol.tokens("r2", 1, 2, [9], [0], "x", logprobs)
    counts = {"prompt_tokens": 9, "completion_tokens": 3, "cached_tokens": 0}
    speculation = {"cycles": 2, "drafted": 8, "accepted": 5, "accepted_per_pos": [2, 2, 1, 0]}
    timing = {"queue_ms": 0.25, "ttft_ms": 12.5, "e2e_ms": 30.75}
    common = {"usage": counts, "speculation": speculation, "timing": timing}
    yield "done: length", encode("done", id="r1", finish="length", stop_reason=None, **common)
    yield "done: a stop text", encode("done", id="r1", finish="stop", stop_reason="»", **common)
    untimed = {**common, "timing": {**timing, "ttft_ms": None}}
    yield (
        "done: abort, not streamed",
        encode("done", id="r2", finish="abort", stop_reason=None, **untimed, ids=[], text=""),
    )
    states = {"front.text": {"n": 1, "ns": 81250}, "verify.compute": {"n": 2, "ns": 2**40}}
    timeline = {"e2e_ns": 2**40 + 81250, "states": states, "overlapped": {}}
    yield (
        "done with a timeline",
        encode("done", id="r3", finish="stop", stop_reason=0, **common, timeline=timeline),
    )
    yield "error", protocol.error(ErrorCode.BAD_REQUEST, "temperature must be a number", "r1")
    yield "error without an id", protocol.error(ErrorCode.UNAUTHENTICATED, "send hello first")
    full = protocol.error(ErrorCode.QUEUE_FULL, "1024 requests are open", "r4", retry_after_ms=250)
    yield "error: queue_full", full
    yield "pong", encode("pong", n=-129, **_INSTANCE)
    yield "alive", encode("alive", **_INSTANCE)
    yield "info, some of it", encode("info", instance=_INSTANCE["instance"], away=["draft-0"])
    yield "tokenized", encode("tokenized", id="t1", ids=[64, 9, 300])
    yield "detokenized", encode("detokenized", id="d1", text="ab")
    yield "detokenized to bytes", encode("detokenized", id="d2", bytes=[[240, 159], []])
    tokens = {"bos_token": "<s>"}
    yield "description", encode("description", chat_template="{{ x }}", special_tokens=tokens)


REFUSED: tuple[tuple[str, str, ErrorCode], ...] = (
    ("not msgpack", "c1", ErrorCode.BAD_REQUEST),
    ("not a map", "90", ErrorCode.BAD_REQUEST),
    ("an empty map", "80", ErrorCode.BAD_REQUEST),
    ("another version", "82a17602a474797065a470696e67", ErrorCode.UNSUPPORTED_VERSION),
    ("an unknown type", "82a17601a474797065a46e6f7065", ErrorCode.BAD_REQUEST),
    ("a key that is no text", "83a17601a474797065a470696e670107", ErrorCode.BAD_REQUEST),
    ("a key twice", "83a17601a17601a474797065a470696e67", ErrorCode.BAD_REQUEST),
    ("bytes for text", "82a17601a474797065c40470696e67", ErrorCode.BAD_REQUEST),
    ("a field is missing", "82a17601a474797065a470696e67", ErrorCode.BAD_REQUEST),
    ("2**53", "83a17601a474797065a470696e67a16ecf0020000000000000", ErrorCode.BAD_REQUEST),
    ("NaN", "83a17601a474797065a470696e67a16ecb7ff8000000000000", ErrorCode.BAD_REQUEST),
    ("an extension type", "83a17601a474797065a470696e67a16ed40100", ErrorCode.BAD_REQUEST),
)
"""Name, hexadecimal frame of a client, and the code of the error that answers it."""


def document() -> dict[str, Any]:
    """The whole file."""
    sources = (("client", client_frames()), ("server", server_frames()))
    return {
        "about": _ABOUT,
        "v": protocol.VERSION,
        "vectors": [
            {"name": name, "from": sender, "message": protocol.unpack(frame), "hex": frame.hex()}
            for sender, frames in sources
            for name, frame in frames
        ],
        "refused": [{"name": name, "hex": hex, "code": code.value} for name, hex, code in REFUSED],
    }


if __name__ == "__main__":
    print(json.dumps(document(), ensure_ascii=False, indent=1))
