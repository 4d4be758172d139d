"""``--inject-delay``: makes the messages of an edge arrive later than they did.

The messages of that edge wait at their receiver, and nothing else does, so that exactly the edge's
``wire`` grows. The slope of a run's time over the delay counts the handoffs on its critical path.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

import zmq

from pdv_mp.config import ConfigError

EDGES = (
    "front>verify",
    "verify>front",
    "verify>prefill",
    "prefill>verify",
    "verify>draft",
    "draft>verify",
    "front>tokenizer",
    "tokenizer>front",
)
"""The edges between processes, named by their stages."""

_MICROSECOND = 1000
_MOST_MICROSECONDS = 10_000_000


def parse_delays(text: str) -> dict[str, int]:
    """``draft>verify=500,verify>draft=200`` (microseconds) as nanoseconds by edge.

    Raises ConfigError for anything else.
    """
    delays = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        edge, _, amount = part.partition("=")
        if edge not in EDGES:
            raise ConfigError(f"--inject-delay: {edge!r} is not one of {', '.join(EDGES)}")
        if edge in delays:
            raise ConfigError(f"--inject-delay names {edge} twice")
        if not amount.isdecimal() or int(amount) > _MOST_MICROSECONDS:
            raise ConfigError(
                f"--inject-delay: {part!r} is not EDGE=MICROSECONDS, at most {_MOST_MICROSECONDS}"
            )
        delays[edge] = int(amount) * _MICROSECOND
    return delays


def delay_of(delays: Mapping[str, int], edge: str) -> HeldFrames | None:
    """What holds back the frames of an edge, None where nothing does."""
    return HeldFrames(delays[edge]) if delays.get(edge) else None


def receive_frame(socket: zmq.Socket[bytes], held: HeldFrames | None) -> bytes | None:
    """The next frame of a socket that may be seen, or None. It does not block."""
    while True:
        try:
            frame = socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None if held is None else held.take()
        if held is None:
            return frame
        held.put(frame)


class HeldFrames:
    """Frames that have arrived and are not to be seen yet, in their order."""

    def __init__(self, delay_ns: int) -> None:
        self._delay_ns = delay_ns
        self._frames: deque[tuple[int, bytes]] = deque()

    def put(self, frame: bytes) -> None:
        """A frame that has just arrived."""
        self._frames.append((time.monotonic_ns() + self._delay_ns, frame))

    def take(self) -> bytes | None:
        """The next frame whose time has come."""
        if not self._frames or self._frames[0][0] > time.monotonic_ns():
            return None
        return self._frames.popleft()[1]

    @property
    def due_ns(self) -> int | None:
        """When the next frame's time comes (monotonic), None if there is none."""
        return self._frames[0][0] if self._frames else None
