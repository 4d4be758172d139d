"""``logprobs`` and ``prompt_logprobs`` of docs/protocol.md, encoded by columns.

An entry is the map ``{id, logprob, top: [[id, logprob], ...]}``. All entries of one request have
equally many alternatives, so each takes the same bytes if integers and floats are written in 32
bits, and numpy can write any number of them at once. One at a time they would hold up the front's
loop: the prompt log-probabilities of one long prompt are hundreds of thousands of numbers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from pdv_mp.wire.protocol import PackedList

_MAP_OF_3 = b"\x83"
_LIST_OF_2 = b"\x92"
_UINT_32 = b"\xce"
_FLOAT_32 = b"\xca"
_LIST_16 = b"\xdc"
_NUMBER = bytes(4)

_ALTERNATIVE = np.dtype(
    [("list", "u1"), ("id_type", "u1"), ("id", ">u4"), ("type", "u1"), ("logprob", ">f4")]
)


def pack_logprobs(
    ids: npt.ArrayLike, chosen: npt.ArrayLike, top_ids: npt.NDArray[Any], top: npt.NDArray[Any]
) -> PackedList:
    """The entries of R tokens. ``ids``, ``chosen`` [R]: the tokens and their log-probabilities;
    ``top_ids``, ``top`` [R, W]: the alternatives, best first. Log-probabilities are finite."""
    count, width = top_ids.shape
    entries = np.repeat(_template(width), count)
    entries["id"] = ids
    entries["logprob"] = chosen
    entries["top"]["id"] = top_ids
    entries["top"]["logprob"] = top
    return PackedList(count, bytearray(entries.tobytes()))


@lru_cache
def _template(width: int) -> npt.NDArray[Any]:
    """One entry with all numbers 0."""
    id_head = _MAP_OF_3 + msgpack.packb("id") + _UINT_32
    logprob_head = msgpack.packb("logprob") + _FLOAT_32
    top_head = msgpack.packb("top") + _LIST_16 + width.to_bytes(2, "big")
    alternative = _LIST_OF_2 + _UINT_32 + _NUMBER + _FLOAT_32 + _NUMBER
    layout = np.dtype(
        [
            ("id_head", f"V{len(id_head)}"),
            ("id", ">u4"),
            ("logprob_head", f"V{len(logprob_head)}"),
            ("logprob", ">f4"),
            ("top_head", f"V{len(top_head)}"),
            ("top", _ALTERNATIVE, (width,)),
        ]
    )
    packed = id_head + _NUMBER + logprob_head + _NUMBER + top_head + width * alternative
    return np.frombuffer(packed, layout)
