"""From a request's body to what the server is asked for."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.errors import ApiError
from gateway.fields import ChatMessage, ChatRequest, CompletionRequest, Extension
from gateway.model_card import ModelCard
from gateway.refusals import check_refused
from pdv_mp.sampling_params import MAX_LOGPROBS, SEED_LIMIT, ParameterError, SamplingParams

MAX_CHOICES = 1024
"""Most completions of one call: prompts times ``n``."""

DEFAULT_MAX_TOKENS = 16
"""Of ``/v1/completions``, as OpenAI has it. A chat has all the room that its prompt leaves."""

Prompt = str | list[int]

_NO_EXTENSION = Extension.model_validate({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One call. ``prompts`` times ``n`` completions, in this order.

    ``logprobs``: alternatives to report, None for no log-probabilities. ``echo``: the prompt is
    part of the answer. ``discards_output``: only the prompt is wanted (``max_tokens`` 0).
    ``fills_context``: ``max_tokens`` is what the prompt leaves. ``names_ids``: tokens are written
    as ``token_id:N``.
    """

    chat: bool
    prompts: list[Prompt]
    n: int
    params: SamplingParams
    stream: bool
    include_usage: bool
    continuous_usage: bool
    logprobs: int | None
    echo: bool
    discards_output: bool
    fills_context: bool
    names_ids: bool
    add_special_tokens: bool
    wants_tokens: bool
    timeline: bool

    def params_of(self, number: int) -> SamplingParams:
        """Of the ``number``th completion: each of a prompt has its own seed, the first the one that
        was asked for, the others those that follow; after the highest comes 0."""
        seed, turn = self.params.seed, number % self.n
        if seed is None or not turn:
            return self.params
        wanted = seed + turn
        return dataclasses.replace(
            self.params, seed=wanted if wanted <= SEED_LIMIT else wanted - SEED_LIMIT - 1
        )


def completion_job(body: CompletionRequest, card: ModelCard) -> Job:
    """Raises ApiError for what cannot be served; it names the field."""
    card.check_name(body.model)
    check_refused(body.model_extra or {})
    prompts = _prompts(body.prompt)
    wanted = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    echo, logprobs = bool(body.echo), body.logprobs
    if echo and logprobs is not None and body.stream:
        raise ApiError("bad_request", "echo with logprobs cannot be streamed", "echo")
    if wanted == 0 and not echo:
        raise ApiError("bad_request", "max_tokens 0 needs echo", "max_tokens")
    return _job(
        body,
        chat=False,
        prompts=prompts,
        max_tokens=max(wanted, 1) if wanted >= 0 else wanted,
        logprobs=logprobs,
        echo=echo,
        discards_output=wanted == 0,
        add_special_tokens=body.add_special_tokens is not False,
    )


def chat_job(body: ChatRequest, card: ModelCard) -> Job:
    """Raises ApiError for what cannot be served; it names the field."""
    card.check_name(body.model)
    check_refused(body.model_extra or {})
    if body.echo:
        raise ApiError("bad_request", "echo is not supported for chats", "echo")
    text = chat_prompt(body.messages, card, body.add_generation_prompt)
    wanted, name = body.max_completion_tokens, "max_completion_tokens"
    if wanted is None:
        wanted, name = body.max_tokens, "max_tokens"
    if wanted is not None and wanted < 1:
        raise ApiError("bad_request", f"{name} must be at least 1", name)
    logprobs = None
    if body.logprobs:
        logprobs = body.top_logprobs or 0
    elif body.top_logprobs:
        raise ApiError("bad_request", "top_logprobs needs logprobs", "top_logprobs")
    bare = body.add_special_tokens is not True and not card.chat.is_plain
    return _job(
        body,
        chat=True,
        prompts=[text],
        max_tokens=wanted,
        logprobs=logprobs,
        echo=False,
        discards_output=False,
        add_special_tokens=not bare and body.add_special_tokens is not False,
    )


def chat_prompt(
    messages: Sequence[ChatMessage], card: ModelCard, add_generation_prompt: bool | None
) -> str:
    """The prompt of a chat. Raises ApiError."""
    if not messages:
        raise ApiError("bad_request", "messages is empty", "messages")
    plain = [_message(index, message) for index, message in enumerate(messages)]
    return card.chat.write(plain, add_generation_prompt is not False)


def _message(index: int, message: ChatMessage) -> dict[str, Any]:
    where = f"messages[{index}]"
    extra = message.model_extra or {}
    for name in ("tool_calls", "function_call"):
        if extra.get(name):
            raise ApiError("bad_request", f"{where}.{name} is not supported", "messages")
    content = message.content
    if content is None:
        content = ""
    elif isinstance(content, list):
        content = "".join(
            _part(f"{where}.content[{number}]", part) for number, part in enumerate(content)
        )
    elif not isinstance(content, str):
        raise ApiError(
            "bad_request", f"{where}.content must be text or a list of parts", "messages"
        )
    found = {"role": message.role, "content": content}
    if isinstance(extra.get("name"), str):
        found["name"] = extra["name"]
    return found


def _part(where: str, part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise ApiError("bad_request", f"{where} must be of type text", "messages")
    return text


def _prompts(value: Any) -> list[Prompt]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        kinds = set(map(type, value))
        if kinds == {int}:
            return [value]
        if kinds == {str}:
            return list(value)
        if kinds == {list} and all(set(map(type, item)) <= {int} for item in value):
            return list(value)
    raise ApiError(
        "bad_request",
        "prompt must be a text, a list of texts, a list of token ids or a list of such lists",
        "prompt",
    )


def _job(
    body: CompletionRequest | ChatRequest,
    *,
    chat: bool,
    prompts: list[Prompt],
    max_tokens: int | None,
    logprobs: int | None,
    echo: bool,
    discards_output: bool,
    add_special_tokens: bool,
) -> Job:
    n = 1 if body.n is None else body.n
    if not 1 <= n <= MAX_CHOICES:
        raise ApiError("bad_request", f"n must be between 1 and {MAX_CHOICES}", "n")
    if body.best_of not in (None, n):
        raise ApiError("bad_request", "best_of is not supported, unless it equals n", "best_of")
    if len(prompts) * n > MAX_CHOICES:
        name = "n" if len(prompts) == 1 else "prompt"
        message = f"{len(prompts)} prompts times n {n} is over the limit of {MAX_CHOICES}"
        raise ApiError("bad_request", message, name)
    if logprobs is not None and not 0 <= logprobs <= MAX_LOGPROBS:
        name = "top_logprobs" if chat else "logprobs"
        raise ApiError("bad_request", f"{name} must be between 0 and {MAX_LOGPROBS}", name)
    options, extension = body.stream_options, body.pdv or _NO_EXTENSION
    stream = bool(body.stream)
    return Job(
        chat=chat,
        prompts=prompts,
        n=n,
        params=_params(body, max_tokens, logprobs, echo, extension.speculate is not False),
        stream=stream,
        include_usage=stream and options is not None and bool(options.include_usage),
        continuous_usage=stream
        and options is not None
        and bool(options.include_usage)
        and bool(options.continuous_usage_stats),
        logprobs=logprobs,
        echo=echo,
        discards_output=discards_output,
        fills_context=max_tokens is None,
        names_ids=bool(body.return_tokens_as_token_ids),
        add_special_tokens=add_special_tokens,
        wants_tokens=bool(extension.tokens),
        timeline=bool(extension.timeline),
    )


def _params(
    body: CompletionRequest | ChatRequest,
    max_tokens: int | None,
    logprobs: int | None,
    echo: bool,
    speculate: bool,
) -> SamplingParams:
    stop = body.stop
    if stop is None or stop == "":
        stop = []
    elif isinstance(stop, str):
        stop = [stop]
    elif not isinstance(stop, list):
        raise ApiError("bad_request", "stop must be a text or a list of texts", "stop")
    try:
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_k=0 if body.top_k is None else body.top_k,
            top_p=1.0 if body.top_p is None else body.top_p,
            min_p=0.0 if body.min_p is None else body.min_p,
            seed=body.seed,
            stop=tuple(stop),
            stop_token_ids=tuple(body.stop_token_ids or ()),
            ignore_eos=bool(body.ignore_eos),
            speculate=speculate,
            logprobs=logprobs,
            prompt_logprobs=logprobs if echo else None,
        )
    except ParameterError as error:
        name = str(error).partition(" ")[0]
        raise ApiError("bad_request", str(error), name) from error


def new_id(chat: bool) -> str:
    """An id for an answer."""
    return ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12)
