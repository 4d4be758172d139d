"""What ``/openapi.json`` says besides the types of the requests."""

from __future__ import annotations

from typing import Any

DESCRIPTION = (
    "The OpenAI API of a pdv_mp server: docs/gateway.md. Unknown fields are ignored; known fields "
    "that this server cannot honour are refused."
)

PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page may talk to its own server and to nobody else."""

_ERROR = {
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["error"],
            "properties": {
                "error": {
                    "type": "object",
                    "required": ["message", "type", "param", "code"],
                    "properties": {
                        "message": {"type": "string"},
                        "type": {"type": "string"},
                        "param": {"type": ["string", "null"]},
                        "code": {"type": "string"},
                    },
                }
            },
        }
    }
}

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": what, "content": _ERROR}
    for status, what in (
        (400, "the request is wrong; error.param names the field"),
        (401, "a key is needed"),
        (403, "the request comes from another site's page"),
        (404, "no such path or model"),
        (405, "the path does not take this method"),
        (408, "the body came too slowly"),
        (413, "the body is too large"),
        (422, "not used: wrong fields get 400"),
        (431, "the headers are too large"),
        (429, "the server is full; Retry-After says when to try again"),
        (500, "a fault in the server"),
        (503, "the server is starting, ending, or lacks a process; Retry-After"),
    )
}

STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the completion; with stream, server-sent events that end with [DONE]",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
}
