"""The bodies of requests: their fields, checked for type; fields that nobody knows are ignored.

Ranges are checked where the values are used. ``null`` counts as absent everywhere. Of a wrong list
the first wrong element is told (``fail_fast``), and not every one of millions.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

_ID = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}

# Checked by gateway/prompts.py: a union would be tried, and every element reported, type by type.
PromptField = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": _TEXT, "minItems": 1},
                {"type": "array", "items": _ID, "minItems": 1},
                {"type": "array", "items": {"type": "array", "items": _ID}, "minItems": 1},
            ]
        }
    ),
]
ContentField = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                _TEXT,
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"type": {"const": "text"}, "text": _TEXT},
                        "required": ["type", "text"],
                    },
                },
                {"type": "null"},
            ]
        }
    ),
]
StopField = Annotated[
    Any,
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT}, {"type": "null"}]}),
]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


class StreamOptions(_Body):
    """What a stream ends with."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Extension(_Body):
    """What only this server offers."""

    tokens: bool | None = Field(
        None, description="ids, bytes and origin (drafted or not) of the tokens of each choice"
    )
    timeline: bool | None = Field(None, description="where the request's time went")
    speculate: bool | None = Field(None, description="false: decode with the verifier alone")


class _Sampling(_Body):
    """What both kinds of completion take."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = Field(None, description="0 to 10; 0 is greedy; default 1")
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    n: int | None = None
    best_of: int | None = None
    stop: StopField = None
    stop_token_ids: list[int] | None = Field(None, fail_fast=True)
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = None
    user: Any = None
    return_tokens_as_token_ids: bool | None = None
    add_special_tokens: bool | None = None
    pdv: Extension | None = None


class CompletionRequest(_Sampling):
    """The body of ``POST /v1/completions``."""

    prompt: PromptField = None
    logprobs: int | None = None


class ChatMessage(_Body):
    """One message of a chat."""

    role: str
    content: ContentField = None


class ChatRequest(_Sampling):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(fail_fast=True)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None


class TokenizeRequest(_Body):
    """The body of ``POST /tokenize``: a text or a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, fail_fast=True)
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None


class DetokenizeRequest(_Body):
    """The body of ``POST /detokenize``."""

    model: str | None = None
    tokens: list[int] = Field(fail_fast=True)
