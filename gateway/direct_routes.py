"""The routes that are asked all the time, without the framework between.

FastAPI describes them in ``/openapi.json`` and answers every other method and path. What it does
for each request (five layers of middleware, routing, dependencies) takes longer than the gateway's
own work before a request is on its way to the server, and each layer costs again whenever a
stream's task wakes.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.answers import respond
from gateway.errors import ApiError
from gateway.exceptions import EXPECTED, body_error, error_of


@dataclass(frozen=True, slots=True)
class DirectRoute:
    """A ``POST`` of one path: the type of its body, and what answers it."""

    body: type[BaseModel]
    handler: Callable[[Any], Awaitable[Response]]


class DirectRoutes:
    """ASGI middleware around the framework's application. ``routes``: by path."""

    def __init__(self, app: ASGIApp, routes: Mapping[str, DirectRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        route = self._routes.get(scope["path"]) if scope["method"] == "POST" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        try:
            data = await _read(receive)
            if data is None:
                return
            answer = await route.handler(_parsed(route.body, data))
        except EXPECTED as error:
            await respond(send, error_of(error))
            return
        await answer(scope, receive, send)


async def _read(receive: Receive) -> bytes | None:
    """A request's body; None if its client has gone. Raises what ``receive`` does."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _parsed(kind: type[BaseModel], data: bytes) -> BaseModel:
    """Raises ApiError for what is no JSON, or not of this type."""
    if not data:
        raise ApiError("bad_request", "the body must be a JSON object")
    try:
        value = json.loads(data)
    except json.JSONDecodeError:
        raise ApiError("bad_request", "the body is not valid JSON") from None
    except (ValueError, RecursionError):  # not UTF-8, a number of 5000 digits, deep nesting
        raise ApiError("bad_request", "the body cannot be read as JSON") from None
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise body_error(fault, fault["loc"]) from None
