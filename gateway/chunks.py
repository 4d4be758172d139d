"""Server-sent events of a stream, made from text: only what a model wrote is encoded each time."""

from __future__ import annotations

import json
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from gateway.errors import ApiError

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": waiting\n\n"
"""A comment, which readers of events skip."""

FINISH = {"stop": '"stop"', "length": '"length"'}


class ChunkWriter:
    """Writes the events of one call. ``usage``: whether chunks have that field."""

    def __init__(self, *, chat: bool, id: str, model: str, created: int, usage: bool) -> None:
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = json.dumps(
            {"id": id, "object": kind, "created": created, "model": model}, separators=(",", ":")
        )
        self._start = f'data: {head[:-1]},"choices":[{{"index":'
        self._bare = f'data: {head[:-1]},"choices":[],'
        self._no_usage = ',"usage":null}\n\n' if usage else "}\n\n"
        self._chat = chat
        self._spoken: set[int] = set()

    def text(
        self,
        index: int,
        text: str,
        *,
        logprobs: str = "null",
        finish: str = "null",
        more: str = "",
        usage: str = "",
    ) -> str:
        """One event of a choice. ``logprobs``, ``finish`` and ``usage`` are JSON already; ``more``
        are further fields of the choice, each after a comma."""
        end = f',"usage":{usage}}}\n\n' if usage else self._no_usage
        if not self._chat:
            return (
                f'{self._start}{index},"text":{quoted(text)},"logprobs":{logprobs},'
                f'"finish_reason":{finish}{more}}}]{end}'
            )
        if index not in self._spoken:
            self._spoken.add(index)
            delta = f'{{"role":"assistant","content":{quoted(text)}}}'
        elif text or finish == "null":
            delta = f'{{"content":{quoted(text)}}}'
        else:
            delta = "{}"
        return (
            f'{self._start}{index},"delta":{delta},"logprobs":{logprobs},'
            f'"finish_reason":{finish}{more}}}]{end}'
        )

    def last(self, fields: dict[str, Any]) -> str:
        """The event without choices that ends a stream: ``usage``, and what else was asked for."""
        return f"{self._bare}{json.dumps(fields, separators=(',', ':'))[1:]}\n\n"


def error_event(error: ApiError) -> bytes:
    """What a stream ends with when it cannot go on."""
    return b"data: " + error.body() + b"\n\n"
