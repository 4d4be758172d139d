"""Log-probabilities as clients get them: any msgpack library reads what is packed by columns."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pdv_mp.wire import protocol
from pdv_mp.wire.logprobs import pack_logprobs
from pdv_mp.wire.protocol import PackedList

IDS = st.integers(0, 2**31 - 1)
LOGPROBS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def token_entries(width: int) -> st.SearchStrategy[dict[str, Any]]:
    pair = st.tuples(IDS, LOGPROBS).map(list)
    top = st.lists(pair, min_size=width, max_size=width)
    return st.fixed_dictionaries({"id": IDS, "logprob": LOGPROBS, "top": top})


ENTRIES = st.integers(0, 20).flatmap(
    lambda width: st.lists(token_entries(width), min_size=1, max_size=5)
)


def pack(entries: list[dict[str, Any]]) -> PackedList:
    top = np.array([entry["top"] for entry in entries], np.float64)
    top = top.reshape(len(entries), -1, 2)
    return pack_logprobs(
        [entry["id"] for entry in entries],
        np.array([entry["logprob"] for entry in entries], np.float32),
        top[..., 0].astype(np.int32),
        top[..., 1].astype(np.float32),
    )


@given(first=ENTRIES, second=ENTRIES)
def test_what_is_packed_is_read_back(
    first: list[dict[str, Any]], second: list[dict[str, Any]]
) -> None:
    packed = pack(first)
    packed.extend(pack(second))
    entries = first + second
    ids = [entry["id"] for entry in entries]
    frame = protocol.tokens("é", 3, 1, ids, [0] * len(ids), "x", packed)
    expected = {"id": "é", "seq": 3, "offset": 1, "ids": ids, "drafted": [0] * len(ids)}
    expected = {"v": 1, "type": "tokens", **expected, "text": "x", "logprobs": entries}
    assert msgpack.unpackb(frame) == expected
    assert protocol.decode_server(frame) == expected
    assert len(frame) > len(packed.data)


def test_a_message_may_hold_several_lists_and_long_ones() -> None:
    rows = 70_000
    long = pack_logprobs(
        np.arange(rows), -np.ones(rows), np.zeros((rows, 0), int), np.zeros((rows, 0))
    )
    frame = protocol.encode("done", logprobs=PackedList(), a=[1], prompt_logprobs=long, b=None)
    message = protocol.decode_server(frame)
    assert list(message) == ["v", "type", "logprobs", "a", "prompt_logprobs", "b"]
    assert message["logprobs"] == []
    assert [entry["id"] for entry in message["prompt_logprobs"]] == list(range(rows))
    assert message["prompt_logprobs"][-1] == {"id": rows - 1, "logprob": -1.0, "top": []}
