"""The servers of one pair, all of them running, one of them measured at a time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack

from bench.load import LoadError, Loop, Window
from bench.load.sources import Work
from bench.results.records import SCHEMA_VERSION, Candidate, CellRecord, Load, RequestRecord, Run
from bench.servers import Server
from bench.sweep.pairs import ModelPair
from bench.sweep.plan import Place, server_options
from pdv_mp.client.client import ServerError, ServerUnreachable
from pdv_mp.client.llm import LaunchError


class PairServers:
    """Measures the cells of one pair; a context manager that starts all servers and ends them.

    ``works``: what the clients ask for, by load. ``must_start``: whether a server that does not
    start raises LaunchError on entry; otherwise its cells fail.
    A server is warm for a load once it has served it since it was started. What is not warm gets a
    window that is thrown away before one that counts, as after a restart or in a resumed sweep.
    """

    def __init__(
        self, run: Run, pair: ModelPair, works: Mapping[str, Work], *, must_start: bool
    ) -> None:
        self._run = run
        self._pair = pair
        self._works = works
        self._must_start = must_start
        self._stack = ExitStack()
        self._servers: dict[str, Server] = {}
        self._warm: dict[str, tuple[tuple[int, int], set[str]]] = {}

    def __enter__(self) -> PairServers:
        with ExitStack() as stack:
            for candidate in self._run.candidates:
                server = Server(candidate.topology, server_options(self._pair, candidate))
                self._servers[candidate.name] = server
                stack.callback(server.close)
                try:
                    server.ensure()
                except LaunchError as error:
                    if self._must_start:
                        raise LaunchError(f"{candidate.name} did not start: {error}") from error
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def __call__(self, place: Place) -> tuple[CellRecord, list[RequestRecord]]:
        """Measures a cell. A server that does not start, dies, or cannot serve is a cell that
        failed."""
        began = time.monotonic()
        candidate, load = self._run.candidates[place.candidate], self._run.loads[place.load]
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        window: Window | None = None
        failed: str | None = None
        try:
            window = self._window(candidate, load, place.block)
            if not window.tokens:
                what = "token" if window.counts.offered else "request"
                failed = f"no {what} arrived in the window; a longer one is needed"
        except LaunchError as error:
            failed = _sentence(error)
        except (LoadError, ServerError, ServerUnreachable) as error:
            failed = _sentence(error)
            self._recover(self._servers[candidate.name])
        cell = CellRecord(
            schema_version=SCHEMA_VERSION,
            id=place.id,
            pair=self._pair.name,
            candidate=candidate.name,
            load=load.name,
            block=place.block,
            order=place.order,
            followed=not place.block,
            started=started,
            window_ns=round(self._run.window * 1e9) if window is None else window.window_ns,
            failed=failed,
            took=time.monotonic() - began,
        )
        return (cell, []) if window is None else (_seen(cell, window), window.records)

    @staticmethod
    def _recover(server: Server) -> None:
        """Ends a server that cannot be used any more; the next cell starts it again."""
        try:
            server.restarts_when_idle()
        except (LoadError, LaunchError, ServerError, ServerUnreachable):
            server.close()

    def _window(self, candidate: Candidate, load: Load, block: int) -> Window:
        server, run = self._servers[candidate.name], self._run
        restarts = server.restarts_when_idle()
        llm = server.ensure()
        process = (server.starts, restarts)
        if self._warm.get(candidate.name, (None, None))[0] != process:
            self._warm[candidate.name] = (process, set())
        warm = self._warm[candidate.name][1]
        work = self._works[load.name]
        with Loop(llm.ipc, llm.pids, server.is_running) as loop:
            if block and load.name not in warm:
                loop.run(work, load, block=0, ramp=run.ramp, seconds=run.window)
                server.restarts_when_idle()
            window = loop.run(
                work, load, block=block, ramp=run.ramp, seconds=run.window, timelines=not block
            )
        if server.restarts_when_idle() != restarts:
            raise LoadError("a process of the server died and was started again")
        warm.add(load.name)
        return window


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())


def _seen(cell: CellRecord, window: Window) -> CellRecord:
    """The cell with what its window saw."""
    fields = {name: getattr(cell, name) for name in cell.__struct_fields__}
    for name in ("invalid", "counts", "lateness_ms", "uses", "gpus", "host_load"):
        fields[name] = getattr(window, name)
    return CellRecord(**fields)
