"""The asyncio client of a running server; see ``pdv_mp.client.client`` for the blocking one.

async with AsyncClient() as client, await client.generate("def main(") as stream:
    async for chunk in stream:
        print(chunk.text, end="", flush=True)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import zmq
import zmq.asyncio

from pdv_mp.client.client_core import (
    TICK_SECONDS,
    Call,
    Chunk,
    ClientCore,
    Completion,
    Generation,
    Question,
    ServerUnreachable,
)
from pdv_mp.client.client_options import (
    DEFAULT_CONNECT_TIMEOUT,
    DEFAULT_ENDPOINT,
    DEFAULT_QUEUE_TIMEOUT,
    DEFAULT_TIMEOUT,
    OnMessage,
    Prompt,
    connect,
    parameters,
)
from pdv_mp.sampling_params import SamplingParams


class AsyncStream(AsyncIterator[Chunk]):
    """The chunks of one request as they arrive; then ``completion`` is set.

    Raises ServerError or ServerUnreachable while iterating. As an ``async with`` block, or with
    :meth:`aclose`, it cancels the request if it is left before the end.
    """

    def __init__(self, client: AsyncClient, generation: Generation) -> None:
        self._client = client
        self._generation = generation

    @property
    def id(self) -> str:
        """The request's id."""
        return self._generation.id

    @property
    def completion(self) -> Completion | None:
        """The whole result, once the request is over; None before."""
        return self._generation.completion

    async def __anext__(self) -> Chunk:
        generation = self._generation
        while not generation.chunks:
            if generation.error is not None:
                raise generation.error
            if generation.finished:
                raise StopAsyncIteration
            await self._client._changed(generation)
        return generation.chunks.popleft()

    async def result(self) -> Completion:
        """Read to the end and return the whole. A task that is cancelled here cancels the request
        too."""
        try:
            async for _ in self:
                pass
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if self._generation.completion is None:
            raise RuntimeError(f"request {self.id} ended without a result")
        return self._generation.completion

    async def cancel(self) -> None:
        """Ask the server to end the request; what is left still arrives."""
        await self._client.cancel(self.id)

    async def aclose(self) -> None:
        """Leave the request; the server ends it unless it is over."""
        self._client._abandon(self._generation)

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()


class AsyncClient:
    """The asyncio client; any number of tasks of one event loop may use it at once.

    ``timeout``, ``connect_timeout``, ``on_message``, ``token`` and ``queue_timeout`` as for
    ``Client``. A task that is cancelled while it waits for a whole result cancels the request too.
    The first call raises ValueError for an endpoint that cannot be connected to.

    One background task reads the socket, and sends what did not leave at once.
    """

    def __init__(
        self,
        endpoint: str = DEFAULT_ENDPOINT,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        connect_timeout: float = DEFAULT_CONNECT_TIMEOUT,
        on_message: OnMessage | None = None,
        token: str | None = None,
        queue_timeout: float = DEFAULT_QUEUE_TIMEOUT,
    ) -> None:
        self.endpoint = endpoint
        self._core = ClientCore(
            endpoint, timeout, connect_timeout, on_message, token, queue_timeout
        )
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._plain: zmq.Socket[bytes] | None = None  # the same one, for calls that never wait
        self._reader: asyncio.Task[None] | None = None
        self._polling: asyncio.Future[list[tuple[Any, int]]] | None = None
        self._work = asyncio.Event()
        self._waiters: dict[Call, asyncio.Event] = {}

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        stream: bool = True,
        timeline: bool = False,
        id: str | None = None,
        **values: Any,
    ) -> AsyncStream:
        """Start a request: ``async for chunk in await client.generate(...)``.

        Raises ParameterError for a parameter out of range, and for text that is not Unicode.
        """
        self._ensure_socket()
        generation = self._core.submit(
            prompt,
            parameters(params, values),
            time.monotonic(),
            stream=stream,
            timeline=timeline,
            id=id,
        )
        self._send()
        return AsyncStream(self, generation)

    async def complete(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Any
    ) -> Completion:
        """The whole result of one request; options as for :meth:`generate`."""
        stream = await self.generate(prompt, params, **{"stream": False, **options})
        return await stream.result()

    async def cancel(self, id: str) -> None:
        """Ask the server to end a request; it ends with ``finish`` "abort"."""
        self._ensure_socket()
        self._core.cancel(id)
        self._send()

    async def hello(self) -> dict[str, Any]:
        """The server's ``welcome``: model, vocabulary, limits."""
        return await self._ask("hello")

    async def ping(self) -> float:
        """Round-trip time to the server in seconds."""
        started = time.monotonic()
        await self._ask("ping")
        return time.monotonic() - started

    async def info(self, batches: int | None = None) -> dict[str, Any]:
        """Configuration, processes and counters of the server, and its last batches; with
        ``batches`` perhaps no more than so many of them (at most 256), which costs it less."""
        fields = {} if batches is None else {"batches": batches}
        return await self._ask("info", **fields)

    async def tokenize(self, prompt: str) -> list[int]:
        """Ids of a text."""
        ids: list[int] = (await self._ask("tokenize", prompt=prompt))["ids"]
        return ids

    async def detokenize(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        text: str = (await self._ask("detokenize", ids=list(ids)))["text"]
        return text

    async def close(self) -> None:
        """Close the connection; the server cancels what is open on it."""
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
            self._reader = None
        self._core.fail(ServerUnreachable("the client was closed"))
        self._wake()
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = self._plain = None
        self._context.term()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._ensure_socket()
        question: Question = self._core.ask(kind, time.monotonic(), **fields)
        self._send()
        try:
            while question.answer is None:
                if question.error is not None:
                    raise question.error
                await self._changed(question)
        except asyncio.CancelledError:
            self._abandon(question)
            raise
        return question.answer

    def _abandon(self, call: Call) -> None:
        self._core.abandon(call)
        if self._socket is not None:
            self._send()

    async def _changed(self, call: Call) -> None:
        """Wait until there is something new about a call; one task per call."""
        self._send()
        event = self._waiters.setdefault(call, asyncio.Event())
        try:
            await event.wait()
        finally:
            self._waiters.pop(call, None)

    def _ensure_socket(self) -> None:
        if self._socket is None:
            self._open_socket()

    def _open_socket(self) -> None:
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = self._plain = None
        socket = self._context.socket(zmq.DEALER)
        try:
            connect(socket, self.endpoint)
        except ValueError:
            socket.close(linger=0)
            raise
        self._socket = socket
        self._plain = zmq.Socket.shadow(socket.underlying)
        self._core.connected(time.monotonic())

    def _send(self) -> None:
        """Hand over what is to be sent, and have the reader see to the rest."""
        if not self._core.wants_new_socket:
            self._flush()
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read())
        self._work.set()
        if self._polling is not None:
            self._polling.cancel()  # a send may have taken the sign of a message's arrival

    def _flush(self) -> bool:
        """Send in order, without waiting, so that nothing can come between. False if the socket's
        queue is full."""
        while self._core.outgoing and self._plain is not None:
            try:
                self._plain.send(self._core.outgoing[0], zmq.NOBLOCK)
            except zmq.Again:
                return False
            self._core.outgoing.popleft()
        return True

    async def _read(self) -> None:
        """Background task: send what waits, take in messages, tick, wake who waits."""
        try:
            while True:
                if self._core.wants_new_socket:
                    self._open_socket()
                flushed = self._flush()
                seconds = self._core.seconds_to_tick(time.monotonic())
                if seconds is None and flushed:
                    self._work.clear()
                    await self._work.wait()
                    continue
                events = zmq.POLLIN if flushed else zmq.POLLIN | zmq.POLLOUT
                await self._wait(TICK_SECONDS if seconds is None else seconds, events)
                with contextlib.suppress(zmq.Again):
                    while self._plain is not None:
                        frame = self._plain.recv(zmq.NOBLOCK)
                        self._core.receive(frame, time.monotonic())
                self._core.tick(time.monotonic())
                self._wake()
        except Exception as error:  # noqa: BLE001 - every caller that waits gets it
            self._core.fail(error)
            self._wake()

    async def _wait(self, seconds: float, events: int) -> None:
        """Until the socket is ready, the time is over or :meth:`_send` was called."""
        if self._socket is None:
            return
        poller = zmq.asyncio.Poller()
        poller.register(self._socket, events)
        self._polling = asyncio.ensure_future(poller.poll(int(seconds * 1000) + 1))
        try:
            await asyncio.wait([self._polling])
            if not self._polling.cancelled():
                self._polling.result()
        finally:
            self._polling.cancel()
            self._polling = None

    def _wake(self) -> None:
        for call in self._core.changed:
            if call in self._waiters:
                self._waiters[call].set()
        self._core.changed.clear()
