"""Where a request's time went, and the ``done`` that says so."""

from __future__ import annotations

import time
from typing import Any

from pdv_mp.front.journal import Request
from pdv_mp.timeline import Timeline, state_index
from pdv_mp.wire import engine as wire
from pdv_mp.wire import protocol

_MILLISECOND = 1_000_000

_TEXT = state_index("front.text")
_PUBLISH = state_index("front.publish")
_INBOX = state_index("front.inbox")
_ADMISSION = state_index("prefill.queue")
_COMPUTE = state_index("verify.compute")
_TOKENS_ENCODE = state_index("verify>front.encode")
_TOKENS_WIRE = state_index("verify>front.wire")
_TOKENS_DECODE = state_index("verify>front.decode")


def account(
    request: Request,
    snapshot: list[Any],
    stamps: wire.Stamps,
    started_ns: int,
    text_ns: int,
    ending: bool,
) -> None:
    """Account for the way of a tokens entry: the baton's for the last one, beside it before."""
    if not ending:
        request.snapshot = snapshot
        edges = (
            (_TOKENS_ENCODE, stamps.sent_ns - stamps.encode_ns),
            (_TOKENS_WIRE, stamps.received_ns - stamps.sent_ns),
            (_TOKENS_DECODE, stamps.decoded_ns - stamps.received_ns),
            (_INBOX, started_ns - stamps.decoded_ns),
            (_TEXT, text_ns - started_ns),
        )
        for state, nanoseconds in edges:
            entry = request.overlapped.setdefault(state, [0, 0])
            entry[0] += 1
            entry[1] += nanoseconds
        return
    timeline = Timeline.unpack(snapshot)
    timeline.enter(_TOKENS_WIRE, stamps.sent_ns)
    timeline.enter(_TOKENS_DECODE, stamps.received_ns)
    timeline.enter(_INBOX, stamps.decoded_ns)
    timeline.enter(_TEXT, started_ns)
    timeline.enter(_PUBLISH, text_ns)
    request.timeline = timeline
    _add_overlapped(request)


def _add_overlapped(request: Request) -> None:
    for state, (count, nanoseconds) in request.overlapped.items():
        request.timeline.add_overlapped(state, nanoseconds, count)


def take_back(request: Request, state: int = _PUBLISH) -> None:
    """Go on with ``state`` here, whether the worker has the request or not. If it has, the time
    since it last said something is its own, and it does not say any more how it spent that."""
    if request.snapshot is not None:
        request.timeline = Timeline.unpack(request.snapshot)
        request.timeline.state = _COMPUTE
        _add_overlapped(request)
        request.snapshot = None
        request.overlapped = {}
    elif request.sent_ns:
        request.timeline.enter(_ADMISSION, request.sent_ns)
    request.sent_ns = 0
    request.timeline.enter(state, time.monotonic_ns())


def encode_done(request: Request, finish: str, reason: str | int | None) -> bytes:
    """The frame of a request's ``done``; its timeline ends now."""
    now = time.monotonic_ns()
    opened_ns = request.opened_ns or now
    first_ns = request.first_token_ns
    fields: dict[str, Any] = {
        "id": request.id,
        "finish": finish,
        "stop_reason": reason,
        "usage": {
            "prompt_tokens": len(request.prompt_ids),
            "completion_tokens": len(request.output_ids),
            "cached_tokens": request.cached_tokens,
        },
        "speculation": {
            "cycles": request.speculation.cycles,
            "drafted": request.speculation.drafted,
            "accepted": request.speculation.accepted,
            "accepted_per_pos": request.speculation.accepted_per_pos,
        },
        "timing": {
            "queue_ms": (opened_ns - request.queued_ns + request.engine_queued_ns) / _MILLISECOND,
            "ttft_ms": (first_ns - request.arrived_ns) / _MILLISECOND if first_ns else None,
            "e2e_ms": (now - request.arrived_ns) / _MILLISECOND,
        },
    }
    if not request.stream:
        fields["ids"] = request.output_ids
        fields["text"] = "".join(request.texts)
    if request.logprobs is not None:
        fields["logprobs"] = request.logprobs
    if request.prompt_logprobs is not None:
        fields["prompt_logprobs"] = request.prompt_logprobs
    if request.wants_timeline:
        fields["timeline"] = request.timeline.report(now)
    return protocol.encode("done", **fields)
