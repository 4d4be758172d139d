"""A server under attack: clients of it, and what must be true of it afterwards.

Tests in other folders import it as ``hostile.attacked``.
"""

from __future__ import annotations

import time
from typing import Any

import psutil
import zmq
from front.front_harness import FakeClient
from server_process import ServerProcess

IDLE_SECONDS = 20.0
"""How long a server may take to be idle again; it is waited for, not measured."""

MOST_GROWTH = 50 * 2**20
"""Bytes by which a process may grow over all attacks of a test file."""


class Attacked:
    """A real server, a client of it that behaves, and any number of others."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.good = FakeClient(self.context, server.endpoint)
        self._others: list[FakeClient] = []
        self.check_served()
        start = self.info()
        self.pids: dict[str, int] = start["processes"]
        self._instance = start["instance"]
        self._start = self._resident()

    def client(self, endpoint: str | None = None, queue: int = 1000) -> FakeClient:
        """Another client, closed after the test."""
        self._others.append(FakeClient(self.context, endpoint or self.server.endpoint, queue))
        return self._others[-1]

    def leave(self) -> None:
        """Close what :meth:`client` gave."""
        for client in self._others:
            client.socket.close(linger=0)
        self._others.clear()

    def info(self) -> dict[str, Any]:
        """The server's ``info``, asked by the good client."""
        self.good.send("info")
        return self.good.expect("info")

    def check_served(self, client: FakeClient | None = None, count: int = 8) -> None:
        """A request is served from beginning to end."""
        client = client or self.good
        client.send("generate", id="good", prompt_ids=[5, 6, 7], max_tokens=count, ignore_eos=True)
        tokens, done = client.until_last("good")
        assert done["type"] == "done", done
        assert sum(len(item["ids"]) for item in tokens) == count

    def wait_idle(self) -> dict[str, Any]:
        """Ask until nothing is open or in use any more; fails when that does not happen."""
        deadline = time.monotonic() + IDLE_SECONDS
        while True:
            info = self.info()
            found = in_use(info)
            if not any(found.values()):
                return info
            assert time.monotonic() < deadline, f"still in use: {found}"

    def check(self) -> None:
        """A good request is served, nothing is left of the others, and no process was replaced."""
        self.check_served()
        info = self.wait_idle()
        assert info["processes"] == self.pids
        assert info["instance"] == self._instance
        assert self.server.process.poll() is None

    def growth(self) -> dict[str, int]:
        """Bytes by which each process has grown."""
        return {name: size - self._start[name] for name, size in self._resident().items()}

    def _resident(self) -> dict[str, int]:
        return {name: psutil.Process(pid).memory_info().rss for name, pid in self.pids.items()}

    def close(self) -> None:
        """Close all sockets."""
        self.leave()
        self.good.socket.close(linger=0)
        self.context.term()


def in_use(info: dict[str, Any]) -> dict[str, int]:
    """What an idle server has none of."""
    counters, pools = info["counters"], info["pools"]
    found = {f"{name}_requests": counters[f"{name}_requests"] for name in _REQUESTS}
    found["taken_credits"] = info["facts"]["credits"] - counters["free_credits"]
    found.update({f"{name}_in_use": pools[f"{name}_in_use"] for name in ("slots", "blocks")})
    return found


_REQUESTS = ("open", "waiting", "closing")
