"""Messages between the pools process and workers: whole, or refused."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdv_mp.wire.frames import WireError
from pdv_mp.wire.pools import (
    Attach,
    Attached,
    DeviceMemory,
    Memfd,
    Offer,
    PoolsMessage,
    Refused,
    Welcome,
    decode_pools,
    encode_pools,
)

OFFER = Offer(
    pid=12,
    num_blocks=7,
    magic=(1 << 63) - 1,
    nonce=5,
    answer=3,
    gpu="GPU-1",
    memfds=(Memfd("weights-target", 9, 1234, 4096, True), Memfd("handshake", 10, 1235, 32, False)),
    device_memory=(DeviceMemory("kv-target-0", bytes(range(64)), 1 << 33, 4),),
)
EXAMPLES: list[PoolsMessage] = [
    Attach("draft-0", "0123456789abcdef"),
    Attached("draft-0", ("weights-draft", "kv-draft-0")),
    OFFER,
    Welcome(),
    Refused("there is no worker 'draft-1'"),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_every_message_comes_back_as_it_was(message: PoolsMessage) -> None:
    assert decode_pools(encode_pools(message)) == message


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({}, "does not say which message"),
        ([5, []], "does not say which message"),
        ([True, []], "does not say which message"),
        ([0, ["draft-0"]], "Attach of the pools has 2 fields"),
        ([0, ["draft-0", 5]], "fingerprint of a Attach is not of type str"),
        ([1, ["draft-0", ["a", 5]]], "buffers of a Attached are not names"),
        ([2, [1, 2, 3, 4, True, "", [], []]], "answer of a Offer is not of type int"),
        ([2, [1, 2, 3, 4, 5, "", [["a"]], []]], "Memfd of the pools has 5 fields"),
        ([2, [1, 2, 3, 4, 5, "", {}, []]], "memfds of a Offer is not a list"),
    ],
)
def test_what_is_not_a_message_is_refused(content: object, text: str) -> None:
    with pytest.raises(WireError, match=text):
        decode_pools(msgpack.packb(content))


@given(st.binary(max_size=64))
def test_any_bytes_are_a_message_or_refused(frame: bytes) -> None:
    try:
        message = decode_pools(frame)
    except WireError:
        return
    assert decode_pools(encode_pools(message)) == message
