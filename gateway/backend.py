"""The gateway's connection to the server: ``ClientCore`` on an asyncio event loop.

``AsyncClient`` serves programs; here hundreds of requests share one connection and each message
costs. So there is no task between the socket and a request: the event loop calls us when the socket
has something, all of it is taken in, and each request that has something new is told once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from pdv_mp.client.client_core import Call, ClientCore, Generation
from pdv_mp.client.client_options import DEFAULT_CONNECT_TIMEOUT, DEFAULT_TIMEOUT, connect
from pdv_mp.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

FRAMES_PER_TURN = 512
"""Most messages taken in before the event loop gets to do something else."""

CHECK_SECONDS = 0.5


class Backend:
    """All requests of the gateway, over one connection. For one event loop.

    ``token``: what the server asks for. Requests that the server has no room for fail with
    ``queue_full`` at once; those that were lost with a connection are sent again, as ``ClientCore``
    does. Raises ValueError for an endpoint that cannot be connected to.
    """

    def __init__(
        self, endpoint: str, token: str | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        self.endpoint = endpoint
        self._core = ClientCore(endpoint, timeout, DEFAULT_CONNECT_TIMEOUT, None, token, 0.0)
        self._listeners: dict[Call, Callable[[], None]] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._again: asyncio.Handle | None = None
        self._check_endpoint()

    def _check_endpoint(self) -> None:
        probe = self._context.socket(zmq.DEALER)
        try:
            connect(probe, self.endpoint)
        finally:
            probe.close(linger=0)

    @property
    def num_open(self) -> int:
        """Calls that have not ended."""
        return len(self._listeners)

    def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        listener: Callable[[], None],
        *,
        stream: bool,
        timeline: bool,
        add_special_tokens: bool,
    ) -> Generation:
        """Start a request; ``listener`` is called whenever there is something new in it.

        Raises ParameterError, ServerError as ``ClientCore.submit``.
        """
        self._ensure_socket()
        generation = self._core.submit(
            prompt,
            params,
            time.monotonic(),
            stream=stream,
            timeline=timeline,
            id=None,
            add_special_tokens=add_special_tokens,
        )
        self._listeners[generation] = listener
        self._work()
        return generation

    def abandon(self, call: Call) -> None:
        """Nobody waits for this any more; what the server still does for it is cancelled."""
        if self._listeners.pop(call, None) is not None and not call.finished:
            self._core.abandon(call)
            self._work()

    async def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The answer to a message such as ``info``. Raises ServerError, ServerUnreachable."""
        self._ensure_socket()
        question = self._core.ask(kind, time.monotonic(), **fields)
        told = asyncio.Event()
        self._listeners[question] = told.set
        self._work()
        try:
            while question.answer is None:
                if question.error is not None:
                    raise question.error
                told.clear()
                await told.wait()
        finally:
            self.abandon(question)
        return question.answer

    def close(self) -> None:
        """Close the connection; the server cancels what is open on it."""
        for handle in (self._timer, self._again):
            if handle is not None:
                handle.cancel()
        self._close_socket()
        self._context.term()

    def _ensure_socket(self) -> None:
        if self._socket is None or self._core.wants_new_socket:
            self._open_socket()

    def _open_socket(self) -> None:
        self._close_socket()
        self._loop = asyncio.get_running_loop()
        socket = self._context.socket(zmq.DEALER)
        for option in (zmq.SNDHWM, zmq.RCVHWM):  # what waits is bounded by the requests
            socket.setsockopt(option, 0)
        connect(socket, self.endpoint)
        self._socket = socket
        self._loop.add_reader(socket.fileno(), self._work)
        self._core.connected(time.monotonic())

    def _close_socket(self) -> None:
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close(linger=0)
            self._socket = None

    def _work(self) -> None:
        """Send what waits, take in what has come, tell who has something new.

        The descriptor of a ZeroMQ socket signals changes only, and any call may use up a signal; so
        each turn ends with a receive that finds nothing, or with another turn that is due.
        """
        if self._again is not None:
            self._again.cancel()
            self._again = None
        try:
            self._turn()
        except Exception as error:  # noqa: BLE001 - everybody who waits gets it
            logger.error("the connection to the server failed: %s", error)
            self._core.fail(error)
        for call in list(self._core.changed):
            listener = self._listeners.get(call)
            if listener is not None:
                listener()
                if call.finished:
                    del self._listeners[call]
        self._core.changed.clear()
        if self._core.busy and self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(CHECK_SECONDS, self._check)

    def _turn(self) -> None:
        core, now = self._core, time.monotonic()
        if core.wants_new_socket:
            if not core.busy:
                self._close_socket()
                return
            self._open_socket()
        socket = self._socket
        if socket is None:
            return
        for _ in range(FRAMES_PER_TURN):
            while core.outgoing:
                socket.send(core.outgoing.popleft(), zmq.NOBLOCK)
            try:
                frame = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            core.receive(frame, now)
        if self._loop is not None:
            self._again = self._loop.call_soon(self._work)

    def _check(self) -> None:
        """While something is open: notice silence, and reconnect."""
        self._timer = None
        self._core.tick(time.monotonic())
        self._work()
