"""Clients of a running server: :class:`Client` blocks, :class:`AsyncClient` is for asyncio.

    with Client() as client:
        for chunk in client.generate("def main(", max_tokens=64):
            print(chunk.text, end="", flush=True)

Neither is thread-safe; use one per thread. Both recover by themselves from a server or connection
that was replaced: the stream pauses and goes on with the next token.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import zmq

from pdv_mp.client.async_client import AsyncClient, AsyncStream
from pdv_mp.client.client_core import (
    Call,
    Chunk,
    ClientCore,
    Completion,
    Generation,
    ServerError,
    ServerUnreachable,
    TokenLogprob,
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

__all__ = [
    "DEFAULT_CONNECT_TIMEOUT",
    "DEFAULT_ENDPOINT",
    "DEFAULT_TIMEOUT",
    "AsyncClient",
    "AsyncStream",
    "Chunk",
    "Client",
    "Completion",
    "ServerError",
    "ServerUnreachable",
    "Stream",
    "TokenLogprob",
]


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
    ServerUnreachable is raised; ``connect_timeout`` is the same for a server that was never heard.
    ``on_message`` is called with every message as it arrives. ``token`` is the one that the server
    asks for, if it does. A request that the server refuses with ``queue_full`` is sent again when
    the server says, for ``queue_timeout`` seconds; with 0 it raises its ServerError at once.
    Nothing is sent before the first call.

    Raises ValueError for an endpoint that cannot be connected to, and for an empty token.
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
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._submitted: dict[str, Generation] = {}
        try:
            self._open_socket()
        except ValueError:
            self.close()
            raise

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        stream: bool = True,
        timeline: bool = False,
        id: str | None = None,
        **values: Any,
    ) -> Stream:
        """Start a request, given its parameters as one object or by name. Iterate over the result
        for its chunks (with ``stream`` false there are none), or call ``.result()``.

        Raises ParameterError for a parameter out of range, and for text that is not Unicode.
        """
        generation = self._core.submit(
            prompt,
            parameters(params, values),
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
        return self._ask("hello")

    def ping(self) -> float:
        """Round-trip time to the server in seconds."""
        started = time.monotonic()
        self._ask("ping")
        return time.monotonic() - started

    def info(self, batches: int | None = None) -> dict[str, Any]:
        """Configuration, processes and counters of the server, and its last batches; with
        ``batches`` perhaps no more than so many of them (at most 256), which costs it less."""
        fields = {} if batches is None else {"batches": batches}
        return self._ask("info", **fields)

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
            connect(self._socket, self.endpoint)
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
        seconds = self._core.seconds_to_tick(time.monotonic())
        if seconds is None:
            return
        if socket.poll(int(seconds * 1000) + 1, events) & zmq.POLLIN:
            with contextlib.suppress(zmq.Again):
                while True:
                    self._core.receive(socket.recv(zmq.NOBLOCK), time.monotonic())
        self._core.tick(time.monotonic())
        self._core.changed.clear()
        self._send()
