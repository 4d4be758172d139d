"""What readers that do not keep up cost everyone else: ``python -m bench.slow_reader``.

A window is one batch of equal requests: some from clients that read, and as many again from two
others. Windows come in pairs on the same server: in one of the pair the two others read as well, in
the other one of them reads a message now and then and one reads nothing. The server has the same
work in both. Time per token is the server's own, (e2e - time to first token) / (tokens - 1), of the
clients that read; the interval of the ratio of medians is a bootstrap over the pairs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import click
import msgpack
import numpy as np
import zmq

from pdv_mp import LLM

SLOW_SECONDS = 0.05
"""The slow reader takes one message in this time."""

SILENCE_MS = 60_000
RESAMPLES = 2000
REQUESTS_OF_OTHERS = 4
"""Each of the two others has this many requests open."""


@dataclass
class Window:
    """What the clients that read saw: a time per token and a timeline of each request, and the most
    ids in one message. ``offended``: the others did not read."""

    offended: bool
    ms_per_token: list[float] = field(default_factory=list)
    timelines: list[dict[str, Any]] = field(default_factory=list)
    most_ids: int = 0

    @property
    def median(self) -> float:
        """Median ms per token of the window's requests."""
        return statistics.median(self.ms_per_token)


@dataclass(frozen=True)
class Ratio:
    """Time per token with readers that do not keep up over that without, and a 95 % interval."""

    with_ms: float
    without_ms: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """The ratio of medians."""
        return self.with_ms / self.without_ms

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


class Load:
    """Clients of one server; a context manager. ``endpoint`` should be ipc, whose buffers are
    small, so that what is not read soon waits in the server."""

    def __init__(self, endpoint: str, clients: int, tokens: int) -> None:
        self._endpoint = endpoint
        self._tokens = tokens
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._good = [self._socket(1000) for _ in range(clients)]

    def _socket(self, queue: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, queue)
        socket.connect(self._endpoint)
        return socket

    def _generate(self, socket: zmq.Socket[bytes], number: int, **fields: Any) -> None:
        prompt = [number % 200 + 1 + step for step in range(16)]
        request = {"v": 1, "type": "generate", "id": str(number), "prompt_ids": prompt, **fields}
        socket.send(msgpack.packb({**request, "ignore_eos": True}))

    def window(self, offended: bool) -> Window:
        """Run one window and wait until the server has nothing open. Raises RuntimeError for an
        error of the server or its silence."""
        others = [self._socket(1), self._socket(1)]
        slow, poller = others[0], zmq.Poller()
        for socket in self._good if offended else [*self._good, *others]:
            poller.register(socket, zmq.POLLIN)
        for index, socket in enumerate(others):
            for number in range(REQUESTS_OF_OTHERS):
                name = 100 + index * REQUESTS_OF_OTHERS + number
                self._generate(socket, name, max_tokens=4 * self._tokens, logprobs=20)
        for number, socket in enumerate(self._good):
            self._generate(socket, number, max_tokens=self._tokens, timeline=True)
        window = Window(offended)
        next_read = time.monotonic()
        heard = next_read
        while len(window.ms_per_token) < len(self._good):
            for ready, _ in poller.poll(int(SLOW_SECONDS * 1000)):
                if ready in self._good:
                    heard = time.monotonic()
                    self._take(msgpack.unpackb(ready.recv()), window)
                else:
                    ready.recv()
            now = time.monotonic()
            if now - heard > SILENCE_MS / 1000:
                raise RuntimeError("the server says nothing any more")
            if offended and now >= next_read:
                next_read = now + SLOW_SECONDS
                if slow.poll(0):
                    slow.recv()
        for socket in others:
            socket.close(linger=0)
        self._wait_idle()
        return window

    def _take(self, message: dict[str, Any], window: Window) -> None:
        if message["type"] == "error":
            raise RuntimeError(f"the server answered {message}")
        if message["type"] == "tokens":
            window.most_ids = max(window.most_ids, len(message["ids"]))
        elif message["type"] == "done":
            timing = message["timing"]
            milliseconds = timing["e2e_ms"] - timing["ttft_ms"]
            window.ms_per_token.append(milliseconds / max(1, self._tokens - 1))
            window.timelines.append(message["timeline"])

    def _wait_idle(self) -> None:
        socket = self._good[0]
        while True:
            socket.send(msgpack.packb({"v": 1, "type": "info"}))
            message: dict[str, Any] = {"type": ""}
            while message["type"] != "info":
                if not socket.poll(SILENCE_MS):
                    raise RuntimeError("the server says nothing any more")
                message = msgpack.unpackb(socket.recv())
            counters = message["counters"]
            if not counters["open_requests"] and not counters["closing_requests"]:
                return

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *exception: object) -> None:
        for socket in self._good:
            socket.close(linger=0)
        self._context.term()


def measure(endpoint: str, pairs: int, clients: int, tokens: int) -> list[tuple[Window, Window]]:
    """Pairs of windows (without, with), which one comes first by turns; one pair more is run
    before and not counted."""
    found = []
    with Load(endpoint, clients, tokens) as load:
        for turn in range(pairs + 1):
            windows = {
                offended: load.window(offended) for offended in (turn % 2 == 1, not turn % 2)
            }
            found.append((windows[False], windows[True]))
    return found[1:]


def compare(pairs: Sequence[tuple[Window, Window]], seed: int = 0) -> Ratio:
    """The ratio of medians over the windows."""
    medians = np.array([(without.median, with_.median) for without, with_ in pairs])
    picks = np.random.default_rng(seed).integers(0, len(pairs), (RESAMPLES, len(pairs)))
    resampled = np.median(medians[picks], axis=1)
    low, high = np.quantile(resampled[:, 1] / resampled[:, 0], (0.025, 0.975))
    without_ms, with_ms = np.median(medians, axis=0)
    return Ratio(float(with_ms), float(without_ms), float(low), float(high))


@click.command(help=__doc__)
@click.option("--pairs", default=40, show_default=True, type=click.IntRange(2))
@click.option("--clients", default=4, show_default=True, type=click.IntRange(1, 100))
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(2, 256))
def main(pairs: int, clients: int, tokens: int) -> None:
    with LLM() as llm:
        ratio = compare(measure(llm.ipc, pairs, clients, tokens))
    print("| others | ms per token (median over windows) |\n| --- | --- |")
    print(f"| read | {ratio.without_ms:.3f} |")
    print(f"| one reads slowly, one not at all | {ratio.with_ms:.3f} |")
    print(f"| ratio (95 % interval, {pairs} pairs of windows) | {ratio} |")


if __name__ == "__main__":
    main()
