"""What the gateway knows of the model behind it: names, limits, chat template, bytes of tokens."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from gateway.backend import Backend
from gateway.chat import ChatWriter
from gateway.errors import ApiError
from pdv_mp.client.client_core import ServerError

STALE_SECONDS = 5.0
"""After this long the server is asked again, so that one that was replaced is noticed."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One server's facts. ``room``: most tokens of prompt and output together."""

    instance: str
    model: str
    version: str
    vocab_size: int
    max_model_len: int
    room: int
    max_message_bytes: int
    chat: ChatWriter
    created: int

    def as_dict(self) -> dict[str, Any]:
        """The entry of ``/v1/models``."""
        return {
            "id": self.model,
            "object": "model",
            "created": self.created,
            "owned_by": "pdv_mp",
            "root": self.model,
            "parent": None,
            "max_model_len": self.room,
        }

    def check_name(self, name: str | None) -> None:
        """Raises ApiError for a model that is not served here; none is the one that is."""
        if name is not None and name != self.model:
            raise ApiError(
                "not_found", f"the model {name!r} does not exist; {self.model!r} is served", "model"
            )


class ModelCards:
    """The present server's card, asked for again when it may be another one. ``on_new`` is called
    when there is one, before it is used."""

    def __init__(self, backend: Backend, on_new: Callable[[], None]) -> None:
        self._backend = backend
        self._on_new = on_new
        self._card: ModelCard | None = None
        self._checked = 0.0
        self._asking: asyncio.Task[ModelCard] | None = None

    async def get(self) -> ModelCard:
        """The card. Raises ServerError, ServerUnreachable if there was never one."""
        if self._card is None:
            return await self._ask()
        if time.monotonic() - self._checked > STALE_SECONDS and self._asking is None:
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(self._asked)
        return self._card

    def _asked(self, task: asyncio.Task[ModelCard]) -> None:
        self._asking = None
        if not task.cancelled():
            task.exception()  # the card that is there goes on

    async def _ask(self) -> ModelCard:
        self._checked = time.monotonic()
        welcome = await self._backend.ask("hello")
        card = self._card
        if card is not None and card.instance == welcome["instance"]:
            return card
        self._card = _card(welcome, await self._description())
        self._on_new()
        return self._card

    async def _description(self) -> dict[str, Any]:
        try:
            return await self._backend.ask("describe")
        except ServerError as error:
            if error.code != "bad_request":
                raise
            return {"chat_template": None, "special_tokens": {}}  # an older server


def _card(welcome: dict[str, Any], description: dict[str, Any]) -> ModelCard:
    return ModelCard(
        instance=welcome["instance"],
        model=welcome["model"],
        version=welcome["version"],
        vocab_size=welcome["vocab_size"],
        max_model_len=welcome["max_model_len"],
        room=welcome["limits"]["max_tokens"] + 1,
        max_message_bytes=welcome["limits"]["max_message_bytes"],
        chat=ChatWriter(description["chat_template"], description["special_tokens"]),
        created=int(time.time()),
    )


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token stands for: its bytes, a text for it, and both as JSON.

    The text of bytes that are no whole characters is ``bytes:`` and each as a backslash, ``x`` and
    two digits, as in the OpenAI API.
    """

    data: bytes
    text: str
    quoted: str
    bytes_json: str


class Pieces:
    """Pieces by token id; asked for once."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._known: dict[int, Piece] = {}

    def __getitem__(self, id: int) -> Piece:
        return self._known[id]

    def forget(self) -> None:
        """The server is another one."""
        self._known.clear()

    def missing(self, ids: Iterable[int]) -> list[int]:
        """Those that have to be asked for."""
        return [id for id in dict.fromkeys(ids) if id not in self._known]

    async def learn(self, ids: Iterable[int], at_once: int) -> None:
        """Ask for what is missing, so many at a time. Raises ServerError, ServerUnreachable."""
        missing = self.missing(ids)
        for start in range(0, len(missing), at_once):
            part = missing[start : start + at_once]
            answer = await self._backend.ask("detokenize", ids=part, bytes=True)
            for id, values in zip(part, answer["bytes"], strict=True):
                self._known[id] = _piece(bytes(values))


def _piece(data: bytes) -> Piece:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "bytes:" + "".join(f"\\x{value:02x}" for value in data)
    return Piece(data, text, json.dumps(text), json.dumps(list(data), separators=(",", ":")))
