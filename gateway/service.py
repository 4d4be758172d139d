"""What the routes share: the connection, the model's facts, and the calls that are open."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.answers import Answer
from gateway.backend import Backend
from gateway.errors import ApiError
from gateway.model_card import ModelCards, Pieces

TICK_SECONDS = 0.5


class GatewayService:
    """State of the gateway. ``draining``: new calls are refused."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.pieces = Pieces(backend)
        self.cards = ModelCards(backend, self.pieces.forget)
        self.draining = False
        self.num_calls = 0
        self._answers: set[Answer] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tick: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[dict[str, Any]] | None = None

    @property
    def num_open(self) -> int:
        """Calls that are open."""
        return len(self._answers)

    def check_serving(self) -> None:
        """Raises ApiError while draining."""
        if self.draining:
            raise ApiError("draining", "the gateway is shutting down and takes no new requests")

    def begin(self, answer: Answer) -> None:
        """A call has begun."""
        self.num_calls += 1
        self._answers.add(answer)
        self._idle.clear()
        if self._tick is None:
            self._tick = asyncio.get_running_loop().call_later(TICK_SECONDS, self._wake_all)

    def end(self, answer: Answer) -> None:
        """A call has ended."""
        self._answers.discard(answer)
        if not self._answers:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until no call is open."""
        await self._idle.wait()

    def _wake_all(self) -> None:
        """Streams that were silent for long say so."""
        self._tick = None
        for answer in self._answers:
            answer.wake()
        if self._answers:
            self._tick = asyncio.get_running_loop().call_later(TICK_SECONDS, self._wake_all)

    def close(self) -> None:
        """End what runs on its own."""
        if self._tick is not None:
            self._tick.cancel()
        if self._asking is not None:
            self._asking.cancel()
        self.backend.close()

    async def tokenize(self, text: str, add_special_tokens: bool) -> list[int]:
        """Ids of a text. Raises ParameterError, ServerError, ServerUnreachable."""
        fields = {} if add_special_tokens else {"add_special_tokens": False}
        answer = await self.backend.ask("tokenize", prompt=text, **fields)
        ids: list[int] = answer["ids"]
        return ids

    async def info(self) -> dict[str, Any]:
        """The server's ``info``; who asks while it is on its way gets the same one. Raises
        ServerError, ServerUnreachable."""
        if self._asking is None:
            self._asking = asyncio.create_task(self.backend.ask("info", batches=0))
            self._asking.add_done_callback(self._asked)
        return await asyncio.shield(self._asking)

    def _asked(self, task: asyncio.Task[dict[str, Any]]) -> None:
        self._asking = None
        if not task.cancelled():
            task.exception()  # who asked has it
