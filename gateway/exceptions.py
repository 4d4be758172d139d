"""What an exception that ends a request is to its client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from gateway.errors import ApiError, api_error
from gateway.guard import Refused
from pdv_mp.client.client_core import ServerError, ServerUnreachable
from pdv_mp.sampling_params import ParameterError

EXPECTED = (
    ApiError,
    ServerError,
    ServerUnreachable,
    ParameterError,
    HTTPException,
    RequestValidationError,
)
"""All other exceptions are faults of ours."""


def error_of(error: Exception) -> ApiError:
    """The answer to one of :data:`EXPECTED`; for any other it says no more than that we failed."""
    if isinstance(error, (ApiError, ServerError, ServerUnreachable)):
        return api_error(error)
    if isinstance(error, ParameterError):
        return ApiError("bad_request", str(error), str(error).partition(" ")[0])
    if isinstance(error, RequestValidationError):
        faults = error.errors()
        return body_error(faults[0], faults[0]["loc"][1:])
    if isinstance(error, HTTPException):
        return _of_framework(error)
    return ApiError("internal", "a fault in the gateway; its log has more")


def _of_framework(error: HTTPException) -> ApiError:
    """What was refused on the way to a route: a path, a method, a body that is no JSON."""
    if isinstance(error, Refused):
        return error.error
    if error.status_code == 404:
        return ApiError("not_found", "there is nothing at this path")
    if error.status_code == 405:
        return ApiError("method_not_allowed", "this path does not take this method")
    if error.status_code < 500:
        return ApiError("bad_request", "the body cannot be read as JSON")
    return ApiError("internal", "a fault in the gateway; its log has more")


def body_error(fault: Mapping[str, Any], where: Sequence[int | str]) -> ApiError:
    """A fault that pydantic found in a body; ``where``: the names of fields that lead to it."""
    if fault["type"] == "json_invalid":
        return ApiError("bad_request", "the body is not valid JSON")
    names = [str(name) for name in where]
    if not names:
        return ApiError("bad_request", "the body must be a JSON object")
    message = str(fault["msg"])
    message = message[:1].lower() + message[1:]
    return ApiError("bad_request", f"{'.'.join(names)[:200]}: {message}", names[0][:200])
