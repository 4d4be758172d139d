"""Bursts: the same request so many times at once, and how long all of them take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import msgspec

from bench.load.connection import SECOND, Connection
from bench.load.errors import LoadError
from bench.load.punctuality import punctual
from bench.load.records import REFUSALS, Request, Requests
from bench.load.usage import Processes
from bench.load.workloads import Ask
from pdv_mp.sampling_params import SamplingParams
from pdv_mp.wire.protocol import generate

BURST_SECONDS = 300.0
"""How long a burst may take."""


class Burst(msgspec.Struct, frozen=True, kw_only=True):
    """One burst, as ``concurrent.json`` holds it.

    ``time_s``: from the sending of the first request to the end of the last. ``latency_s``,
    ``ttft_s``: of each request that was completed, from its sending to its end and to its first
    token. ``tokens``, ``prompt_tokens``, ``cached_tokens``: sums over these. ``pss_bytes``,
    ``rss_bytes``: of all processes of the server right after it; PSS counts a page that several
    have once, and is None where the system does not tell it. ``error``: why the server lost
    all of it.
    """

    variant: str
    requests: int
    round: int
    time_s: float | None = None
    latency_s: list[float] = []
    ttft_s: list[float] = []
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    refused: int = 0
    failed: int = 0
    pss_bytes: int | None = None
    rss_bytes: int | None = None
    error: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every request was completed."""
        return self.error is None and not self.refused and not self.failed

    @property
    def ttft_mean_s(self) -> float | None:
        """Mean time to first token."""
        return statistics.mean(self.ttft_s) if self.ttft_s else None


class Bursts:
    """Asks one server; a context manager that closes the connection.

    ``pids``: the server's processes. ``is_running`` is asked when it is silent.
    """

    def __init__(
        self, endpoint: str, pids: Mapping[str, int], is_running: Callable[[], bool]
    ) -> None:
        self._processes = Processes(pids)
        self._connection = Connection(endpoint, is_running)
        self._requests = Requests()

    def run(
        self, prompt: str, max_tokens: int, *, variant: str, requests: int, round: int
    ) -> Burst:
        """One burst; greedy, the end-of-sequence id ignored. Raises LoadError if the server is
        silent, gone or loses a request."""
        connection, open_requests = self._connection, self._requests
        open_requests.clear()
        params = SamplingParams(max_tokens=max_tokens, seed=0, ignore_eos=True)
        ids = [open_requests.new_id() for _ in range(requests)]
        frames = [generate(id, prompt, params) for id in ids]
        ask = Ask(0, max_tokens, 0)
        with punctual():
            connection.begin()
            for client, (id, frame) in enumerate(zip(ids, frames, strict=True)):
                sent_ns = connection.send(frame)
                open_requests.add(Request(id, client, ask, 0, sent_ns, sent_ns))
            deadline_ns = time.monotonic_ns() + int(BURST_SECONDS * SECOND)
            while open_requests.open:
                if time.monotonic_ns() >= deadline_ns:
                    raise LoadError(f"{requests} requests have not ended after {BURST_SECONDS:g} s")
                received = connection.receive()
                if received is None:
                    connection.wait(deadline_ns, lambda: True)
                else:
                    open_requests.take(*received)
        return self._burst(variant, requests, round)

    def _burst(self, variant: str, requests: int, round: int) -> Burst:
        memory = self._processes.memory().values()
        shares = [pss for _, pss in memory if pss is not None]
        found = self._requests.all
        whole = [request for request in found if request.is_whole]
        refused = sum(request.error in REFUSALS for request in found)
        last_ns = max(request.ended_ns or 0 for request in found)
        usage = [request.done["usage"] for request in whole]
        return Burst(
            variant=variant,
            requests=requests,
            round=round,
            time_s=(last_ns - found[0].sent_ns) / SECOND,
            latency_s=[((r.ended_ns or 0) - r.sent_ns) / SECOND for r in whole],
            ttft_s=[(r.events[0][0] - r.sent_ns) / SECOND for r in whole],
            tokens=sum(len(request.ids) for request in whole),
            prompt_tokens=sum(one["prompt_tokens"] for one in usage),
            cached_tokens=sum(one["cached_tokens"] for one in usage),
            refused=refused,
            failed=len(found) - len(whole) - refused,
            pss_bytes=sum(shares) if len(shares) == len(memory) else None,
            rss_bytes=sum(rss for rss, _ in memory),
        )

    def __enter__(self) -> Bursts:
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.__exit__(*exception)
