"""A client in a process of its own, which a test may kill or stop.

    python crowd_client.py ENDPOINT REQUESTS MAX_TOKENS LOGPROBS

Starts so many streams at once (with -1 for LOGPROBS without log-probabilities), prints one line
when some have begun, reads them to their ends and prints what came as JSON. Its queue is short, so
that while it does not read, little of what the server sends is on the way.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import msgpack
import zmq

SOME = 8


def main(endpoint: str, requests: int, max_tokens: int, logprobs: int) -> None:
    """Run it; raises ValueError for a message that breaks a rule of the protocol."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVHWM, 1)
    socket.connect(endpoint)
    fields = {"prompt_ids": [7, 8, 9], "max_tokens": max_tokens, "ignore_eos": True}
    if logprobs >= 0:
        fields["logprobs"] = logprobs
    for number in range(requests):
        request = {"v": 1, "type": "generate", "id": str(number), "seed": number, **fields}
        socket.send(msgpack.packb({**request, "temperature": 1}))
    seen: dict[str, dict[str, Any]] = {}
    said = False
    while sum("last" in item for item in seen.values()) < requests:
        message = msgpack.unpackb(socket.recv())
        if message["type"] != "alive":
            _note(message, seen)
        if not said and sum(item["tokens"] > 0 for item in seen.values()) >= min(requests, SOME):
            print("streaming", flush=True)
            said = True
    print(json.dumps(seen), flush=True)
    socket.close()
    context.term()


def _note(message: dict[str, Any], seen: dict[str, dict[str, Any]]) -> None:
    kind = message["type"]
    if kind == "accepted":
        if message["id"] in seen:
            raise ValueError(f"accepted twice: {message['id']}")
        seen[message["id"]] = {"messages": 0, "tokens": 0}
        return
    item = seen[message["id"]]
    if "last" in item:
        raise ValueError(f"{kind} after the end of {message['id']}")
    if kind == "tokens":
        if (message["seq"], message["offset"]) != (item["messages"], item["tokens"]):
            raise ValueError(f"a gap in {message['id']}")
        item["messages"] += 1
        item["tokens"] += len(message["ids"])
    else:
        item["last"] = message["finish"] if kind == "done" else message["code"]


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
