"""Clients of a running server: :class:`Client` blocks, :class:`AsyncClient` is for asyncio.

    with Client() as client:
        for chunk in client.generate("def main(", max_tokens=64):
            print(chunk.text, end="", flush=True)

Neither is thread-safe; use one per thread. Both recover by themselves from a server or connection
that was replaced: the stream pauses and goes on with the next token.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import zmq
import zmq.asyncio

from pdv_mp.client_core import (
    Call,
    Chunk,
    ClientCore,
    Completion,
    Generation,
    Question,
    ServerError,
    ServerUnreachable,
)
from pdv_mp.sampling_params import SamplingParams

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Chunk",
    "Client",
    "Completion",
    "ServerError",
    "ServerUnreachable",
    "Stream",
]

DEFAULT_ENDPOINT = "tcp://127.0.0.1:5555"
DEFAULT_TIMEOUT = 30.0

Prompt = str | Sequence[int]
OnMessage = Callable[[dict[str, Any]], None]


def _parameters(params: SamplingParams | None, values: dict[str, Any]) -> SamplingParams:
    if params is not None and values:
        raise TypeError(f"give either params or {', '.join(values)}, not both")
    for name in ("stop", "stop_token_ids"):
        if isinstance(values.get(name), list):
            values[name] = tuple(values[name])
    return params if params is not None else SamplingParams(**values)


def _configure(socket: zmq.Socket[Any], endpoint: str) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    socket.setsockopt(zmq.IPV6, 1)
    socket.connect(endpoint)


class Stream(Iterator[Chunk]):
    """The chunks of one request as they arrive; then ``completion`` is set.

    Raises ServerError or ServerUnreachable while iterating. As a context manager it cancels the
    request if it is left before the end.
    """

    def __init__(self, client: Client, generation: Generation) -> None:
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

    def __next__(self) -> Chunk:
        generation = self._generation
        while not generation.chunks:
            if generation.error is not None:
                raise generation.error
            if generation.finished:
                raise StopIteration
            self._client._wait()
        return generation.chunks.popleft()

    def result(self) -> Completion:
        """Read to the end and return the whole."""
        for _ in self:
            pass
        if self._generation.completion is None:
            raise RuntimeError(f"request {self.id} ended without a result")
        return self._generation.completion

    def cancel(self) -> None:
        """Ask the server to end the request; what is left still arrives."""
        self._client.cancel(self.id)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client._abandon(self._generation)


class Client:
    """A blocking client.

    ``timeout``: seconds without any message from the server, while something is open, after which
    ServerUnreachable is raised. ``on_message`` is called with every message as it arrives.
    Nothing is sent before the first call.
    """

    def __init__(
        self,
        endpoint: str = DEFAULT_ENDPOINT,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        on_message: OnMessage | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._core = ClientCore(endpoint, timeout, on_message)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._submitted: dict[str, Generation] = {}

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        stream: bool = True,
        timeline: bool = False,
        id: str | None = None,
        **parameters: Any,
    ) -> Stream:
        """Start a request, given its parameters as one object or by name. Iterate over the result
        for its chunks (with ``stream`` false there are none), or call ``.result()``.

        Raises ParameterError for a parameter out of range.
        """
        generation = self._core.submit(
            prompt,
            _parameters(params, parameters),
            time.monotonic(),
            stream=stream,
            timeline=timeline,
            id=id,
        )
        self._send()
        return Stream(self, generation)

    def complete(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Any
    ) -> Completion:
        """The whole result of one request; options as for :meth:`generate`."""
        return self.generate(prompt, params, **{"stream": False, **options}).result()

    def submit(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> str:
        """Start a request whose result :meth:`results` gives; returns its id."""
        stream = self.generate(prompt, params, **{"stream": False, **options})
        self._submitted[stream.id] = stream._generation
        return stream.id

    def results(self, *, return_errors: bool = False) -> Iterator[Completion | ServerError]:
        """The results of all submitted requests in the order in which they end.

        A request that the server refused or failed raises its ServerError, with ``id`` set; call
        this again for the others. With ``return_errors`` it is yielded instead.
        """
        while self._submitted:
            ended = [item for item in self._submitted.values() if item.finished]
            for generation in ended:
                del self._submitted[generation.id]
                if generation.completion is not None:
                    yield generation.completion
                elif isinstance(generation.error, ServerError) and return_errors:
                    yield generation.error
                elif generation.error is not None:
                    raise generation.error
            if not ended:
                self._wait()

    def cancel(self, id: str) -> None:
        """Ask the server to end a request; it ends with ``finish`` "abort"."""
        self._core.cancel(id)
        self._send()

    def hello(self) -> dict[str, Any]:
        """The server's ``welcome``: model, vocabulary, limits."""
        return self._ask("hello", client="pdv_mp")

    def ping(self) -> float:
        """Round-trip time to the server in seconds."""
        started = time.monotonic()
        self._ask("ping")
        return time.monotonic() - started

    def info(self) -> dict[str, Any]:
        """Configuration, processes and counters of the server."""
        return self._ask("info")

    def tokenize(self, prompt: str) -> list[int]:
        """Ids of a text."""
        ids: list[int] = self._ask("tokenize", prompt=prompt)["ids"]
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        text: str = self._ask("detokenize", ids=list(ids))["text"]
        return text

    def close(self) -> None:
        """Close the connection; the server cancels what is open on it."""
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None
        self._context.term()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        question = self._core.ask(kind, time.monotonic(), **fields)
        self._send()
        while question.answer is None:
            if question.error is not None:
                raise question.error
            self._wait()
        return question.answer

    def _abandon(self, call: Call) -> None:
        self._core.abandon(call)
        self._send()

    def _open_socket(self) -> zmq.Socket[bytes]:
        if self._socket is None or self._core.wants_new_socket:
            if self._socket is not None:
                self._socket.close(linger=0)
            self._socket = self._context.socket(zmq.DEALER)
            _configure(self._socket, self.endpoint)
            self._core.connected(time.monotonic())
        return self._socket

    def _send(self) -> bool:
        """Hand over what is to be sent. False if the socket's queue is full."""
        socket = self._open_socket()
        while self._core.outgoing:
            try:
                socket.send(self._core.outgoing[0], zmq.NOBLOCK)
            except zmq.Again:
                return False
            self._core.outgoing.popleft()
        return True

    def _wait(self) -> None:
        """One turn: send, wait for a message or the next tick, take in all that has arrived."""
        events = zmq.POLLIN if self._send() else zmq.POLLIN | zmq.POLLOUT
        socket = self._open_socket()
        seconds = self._core.seconds_to_tick()
        if seconds is None:
            return
        if socket.poll(int(seconds * 1000) + 1, events) & zmq.POLLIN:
            with contextlib.suppress(zmq.Again):
                while True:
                    self._core.receive(socket.recv(zmq.NOBLOCK), time.monotonic())
        self._core.tick(time.monotonic())
        self._core.changed.clear()
        self._send()


class AsyncStream(AsyncIterator[Chunk]):
    """The chunks of one request as they arrive; then ``completion`` is set.

    Raises ServerError or ServerUnreachable while iterating.
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
        """Read to the end and return the whole."""
        async for _ in self:
            pass
        if self._generation.completion is None:
            raise RuntimeError(f"request {self.id} ended without a result")
        return self._generation.completion

    async def cancel(self) -> None:
        """Ask the server to end the request; what is left still arrives."""
        await self._client.cancel(self.id)


class AsyncClient:
    """The asyncio client; any number of tasks of one event loop may use it at once.

    ``timeout`` and ``on_message`` as for :class:`Client`. A task that is cancelled while it waits
    for a whole result cancels the request too.
    """

    def __init__(
        self,
        endpoint: str = DEFAULT_ENDPOINT,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        on_message: OnMessage | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._core = ClientCore(endpoint, timeout, on_message)
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._reader: asyncio.Task[None] | None = None
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
        **parameters: Any,
    ) -> AsyncStream:
        """Start a request: ``async for chunk in await client.generate(...)``."""
        generation = self._core.submit(
            prompt,
            _parameters(params, parameters),
            time.monotonic(),
            stream=stream,
            timeline=timeline,
            id=id,
        )
        await self._send()
        return AsyncStream(self, generation)

    async def complete(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Any
    ) -> Completion:
        """The whole result of one request; options as for :meth:`generate`."""
        stream = await self.generate(prompt, params, **{"stream": False, **options})
        try:
            return await stream.result()
        except asyncio.CancelledError:
            self._core.abandon(stream._generation)
            await self._send()
            raise

    async def cancel(self, id: str) -> None:
        """Ask the server to end a request; it ends with ``finish`` "abort"."""
        self._core.cancel(id)
        await self._send()

    async def hello(self) -> dict[str, Any]:
        """The server's ``welcome``: model, vocabulary, limits."""
        return await self._ask("hello", client="pdv_mp")

    async def ping(self) -> float:
        """Round-trip time to the server in seconds."""
        started = time.monotonic()
        await self._ask("ping")
        return time.monotonic() - started

    async def info(self) -> dict[str, Any]:
        """Configuration, processes and counters of the server."""
        return await self._ask("info")

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
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None
        self._context.term()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        question: Question = self._core.ask(kind, time.monotonic(), **fields)
        await self._send()
        while question.answer is None:
            if question.error is not None:
                raise question.error
            await self._changed(question)
        return question.answer

    async def _changed(self, call: Call) -> None:
        """Wait until there is something new about a call; one task per call."""
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read())
        self._work.set()
        event = self._waiters.setdefault(call, asyncio.Event())
        try:
            await event.wait()
        finally:
            self._waiters.pop(call, None)

    def _open_socket(self) -> zmq.asyncio.Socket:
        if self._socket is None or self._core.wants_new_socket:
            if self._socket is not None:
                self._socket.close(linger=0)
            self._socket = self._context.socket(zmq.DEALER)
            _configure(self._socket, self.endpoint)
            self._core.connected(time.monotonic())
        return self._socket

    async def _send(self) -> None:
        socket = self._open_socket()
        while self._core.outgoing:
            await socket.send(self._core.outgoing.popleft())

    async def _read(self) -> None:
        """Background task: take in messages, tick, wake who waits."""
        try:
            while True:
                seconds = self._core.seconds_to_tick()
                if seconds is None:
                    self._work.clear()
                    await self._work.wait()
                    continue
                await self._send()
                socket = self._open_socket()
                if await socket.poll(int(seconds * 1000) + 1):
                    with contextlib.suppress(zmq.Again):
                        while True:
                            frame = await socket.recv(zmq.NOBLOCK)
                            self._core.receive(frame, time.monotonic())
                self._core.tick(time.monotonic())
                self._wake()
        except Exception as error:  # noqa: BLE001 - every caller that waits gets it
            self._core.fail(error)
            self._wake()

    def _wake(self) -> None:
        for call in self._core.changed:
            if call in self._waiters:
                self._waiters[call].set()
        self._core.changed.clear()
