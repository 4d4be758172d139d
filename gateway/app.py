"""The routes. Anything that goes wrong becomes an answer in the form of errors.py."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

import pdv_mp
from gateway import documentation
from gateway.answers import Answer
from gateway.direct_routes import DirectRoute, DirectRoutes
from gateway.errors import ApiError
from gateway.exceptions import EXPECTED, error_of
from gateway.fields import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from gateway.health import health_fault, server_info
from gateway.jobs import chat_job, chat_prompt, completion_job
from gateway.service import GatewayService
from gateway.streamed_answer import StreamedAnswer
from gateway.whole_answer import WholeAnswer
from pdv_mp.metrics.exposition import CONTENT_TYPE, exposition

logger = logging.getLogger(__name__)


def make_app(service: GatewayService) -> ASGIApp:
    """The application over a running service."""
    app = FastAPI(
        title="pdv_mp",
        version=pdv_mp.__version__,
        description=documentation.DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        responses=documentation.ERRORS,
    )
    _add_error_handlers(app)
    completions = _completion_routes(service)
    for path, route in completions.items():
        app.post(path, responses=documentation.STREAM)(route.handler)
    _add_texts(app, service)
    _add_facts(app, service)
    return DirectRoutes(app, completions)


def _completion_routes(service: GatewayService) -> dict[str, DirectRoute]:
    async def completions(body: CompletionRequest) -> Response:
        """Complete a prompt."""
        service.check_serving()
        card = await service.cards.get()
        job = completion_job(body, card)
        return _answer(job.stream)(service, job, card)

    async def chat_completions(body: ChatRequest) -> Response:
        """Write the next message of a chat."""
        service.check_serving()
        card = await service.cards.get()
        job = chat_job(body, card)
        return _answer(job.stream)(service, job, card)

    return {
        "/v1/completions": DirectRoute(CompletionRequest, completions),
        "/v1/chat/completions": DirectRoute(ChatRequest, chat_completions),
    }


def _answer(stream: bool) -> Callable[..., Answer]:
    return StreamedAnswer if stream else WholeAnswer


def _add_texts(app: FastAPI, service: GatewayService) -> None:
    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> Response:
        """Token ids of a text, or of a chat."""
        card = await service.cards.get()
        card.check_name(body.model)
        if (body.prompt is None) == (body.messages is None):
            message = "exactly one of prompt and messages is needed"
            raise ApiError("bad_request", message, "prompt")
        if body.prompt is not None:
            ids = await service.tokenize(body.prompt, body.add_special_tokens is not False)
        else:
            text = chat_prompt(body.messages or [], card, body.add_generation_prompt)
            special = body.add_special_tokens
            ids = await service.tokenize(text, card.chat.is_plain if special is None else special)
        return _json({"tokens": ids, "count": len(ids), "max_model_len": card.room})

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of token ids."""
        card = await service.cards.get()
        card.check_name(body.model)
        answer = await service.backend.ask("detokenize", ids=body.tokens)
        return _json({"prompt": answer["text"]})


def _add_facts(app: FastAPI, service: GatewayService) -> None:
    page = resources.files("gateway").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        """A page to try it."""
        return HTMLResponse(page, headers={"content-security-policy": documentation.PAGE_POLICY})

    @app.get("/health")
    async def health() -> Response:
        """200 while everything works."""
        service.check_serving()
        fault = health_fault(await service.info())
        if fault is not None:
            raise ApiError("lane_failed", fault)
        return Response()

    @app.get("/v1/models")
    async def models() -> Response:
        """The one model."""
        card = await service.cards.get()
        return _json({"object": "list", "data": [card.as_dict()]})

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Response:
        """One model."""
        card = await service.cards.get()
        card.check_name(model)
        return _json(card.as_dict())

    @app.get("/version")
    async def version() -> Response:
        """The server's version."""
        return _json({"version": (await service.cards.get()).version})

    @app.get("/server_info")
    async def info() -> Response:
        """Configuration, processes and counters of the server."""
        return _json(server_info(await service.info(), service))

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(exposition(await service.info()), media_type=CONTENT_TYPE)


def _json(value: Any) -> Response:
    text = json.dumps(value, separators=(",", ":"))
    return Response(text, media_type="application/json")


def _add_error_handlers(app: FastAPI) -> None:
    async def failed(request: Request, error: Exception) -> Response:
        found = error_of(error)
        headers = {name.decode(): value.decode() for name, value in found.headers()}
        return Response(found.body(), found.status, headers)

    for kind in (*EXPECTED, Exception):
        app.add_exception_handler(kind, failed)
