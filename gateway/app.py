"""The routes. Anything that goes wrong becomes an answer in the form of errors.py."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, PlainTextResponse, Response

import pdv_mp
from gateway import documentation
from gateway.answers import Answer
from gateway.errors import ApiError, api_error
from gateway.fields import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from gateway.guard import Refused
from gateway.health import health_fault, server_info
from gateway.jobs import chat_job, chat_prompt, completion_job
from gateway.service import GatewayService
from gateway.streamed_answer import StreamedAnswer
from gateway.whole_answer import WholeAnswer
from pdv_mp.client.client_core import ServerError, ServerUnreachable
from pdv_mp.metrics.exposition import CONTENT_TYPE, exposition
from pdv_mp.sampling_params import ParameterError

logger = logging.getLogger(__name__)


def make_app(service: GatewayService) -> FastAPI:
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
    _add_completions(app, service)
    _add_texts(app, service)
    _add_facts(app, service)
    return app


def _add_completions(app: FastAPI, service: GatewayService) -> None:
    @app.post("/v1/completions", responses=documentation.STREAM)
    async def completions(body: CompletionRequest) -> Response:
        """Complete a prompt."""
        service.check_serving()
        card = await service.cards.get()
        job = completion_job(body, card)
        return _answer(job.stream)(service, job, card)

    @app.post("/v1/chat/completions", responses=documentation.STREAM)
    async def chat_completions(body: ChatRequest) -> Response:
        """Write the next message of a chat."""
        service.check_serving()
        card = await service.cards.get()
        job = chat_job(body, card)
        return _answer(job.stream)(service, job, card)


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
        return _error(api_error(error))

    async def refused(request: Request, error: Exception) -> Response:
        return _error(_of_framework(error))

    async def bad_parameter(request: Request, error: Exception) -> Response:
        return _error(ApiError("bad_request", str(error), str(error).partition(" ")[0]))

    async def invalid(request: Request, error: Exception) -> Response:
        return _error(_first_fault(error))

    async def crashed(request: Request, error: Exception) -> Response:
        return _error(ApiError("internal", "a fault in the gateway; its log has more"))

    for kind in (ApiError, ServerError, ServerUnreachable):
        app.add_exception_handler(kind, failed)
    app.add_exception_handler(ParameterError, bad_parameter)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, crashed)


def _error(error: ApiError) -> Response:
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(error.body(), error.status, headers)


def _of_framework(error: Exception) -> ApiError:
    """What the framework refused: a path, a method, a body that is no JSON."""
    if isinstance(error, Refused):
        return error.error
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 404:
        return ApiError("not_found", "there is nothing at this path")
    if status == 405:
        return ApiError("method_not_allowed", "this path does not take this method")
    if status < 500:
        return ApiError("bad_request", "the body cannot be read as JSON")
    return ApiError("internal", "a fault in the gateway; its log has more")


def _first_fault(error: Exception) -> ApiError:
    """The first of the faults that were found in a body."""
    faults = error.errors() if isinstance(error, RequestValidationError) else []
    if not faults:
        return ApiError("bad_request", "the body is not as documented")
    where, message = faults[0]["loc"], str(faults[0]["msg"])
    if faults[0]["type"] == "json_invalid":
        return ApiError("bad_request", "the body is not valid JSON")
    names = [str(name) for name in where[1:]]
    if not names:
        return ApiError("bad_request", "the body must be a JSON object")
    message = message[:1].lower() + message[1:]
    return ApiError("bad_request", f"{'.'.join(names)[:200]}: {message}", names[0][:200])
