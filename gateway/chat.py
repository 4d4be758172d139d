"""Chats as prompts: the template of the model, rendered as transformers does, or a plain form."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.errors import ApiError

Message = dict[str, Any]


class ChatWriter:
    """Turns messages into a prompt. ``template``: Jinja, or None for the plain form, in which a
    message is its role with a capital letter, a colon, the text and an empty line, and the prompt
    ends with ``Assistant:``. ``special_tokens``: by the names that templates use."""

    def __init__(self, template: str | None, special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = dict(special_tokens)
        self._fault = ""
        self._template = None
        if template is not None:
            try:
                self._template = _environment().from_string(template)
            except TemplateError as error:
                self._fault = f"the model's chat template cannot be read: {error}"

    @property
    def is_plain(self) -> bool:
        """Whether the model has no template."""
        return self._template is None and not self._fault

    def write(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The prompt. Raises ApiError if the template refuses these messages, or fails."""
        if self._fault:
            raise ApiError("internal", self._fault)
        if self._template is None:
            return _plain(messages, add_generation_prompt)
        try:
            return self._template.render(
                messages=list(messages),
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except _Refused as error:
            raise ApiError("bad_request", f"messages: {error}", "messages") from error
        except (TemplateError, SecurityError, UndefinedError) as error:
            message = f"messages do not fit the model's chat template: {error}"
            raise ApiError("bad_request", message, "messages") from error
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            kind = type(error).__name__
            message = f"messages do not fit the model's chat template ({kind})"
            raise ApiError("bad_request", message, "messages") from error


def _plain(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    parts = [f"{message['role'].capitalize()}: {message['content']}\n\n" for message in messages]
    return "".join(parts) + ("Assistant:" if add_generation_prompt else "")


class _Refused(Exception):
    """A template's own ``raise_exception``."""


class _Generation(Extension):
    """``{% generation %}`` marks what the model writes, for those who train on it; here it is only
    its contents."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    filters: dict[str, Callable[..., Any]] = environment.filters
    filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in transformers: without the escapes for HTML that jinja2's own has."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> str:
    raise _Refused(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
