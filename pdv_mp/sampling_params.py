"""What a request may ask of the sampler and of its own end."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_LOGPROBS = 20
SEED_LIMIT = 2**53 - 1


class ParameterError(ValueError):
    """A request's parameter has the wrong type or is out of range; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """The parameters of one request, as docs/protocol.md defines them.

    ``temperature`` 0 is greedy. ``top_k`` 0 or -1 means all. The order of the truncations is that
    of transformers: temperature, top_k, top_p, min_p. ``max_tokens`` None takes the default of the
    server; ``seed`` None lets the server draw one. ``logprobs``, ``prompt_logprobs``: how many
    alternatives to report beside each token's own log-probability; None reports nothing. ``stop``
    and ``stop_token_ids`` may be given as lists; they are kept as tuples.

    Raises ParameterError for a value of the wrong type or out of range.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    speculate: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, SEED_LIMIT)
        _number("temperature", self.temperature, 0.0, 10.0)
        _integer("top_k", self.top_k, -1, SEED_LIMIT)
        _number("top_p", self.top_p, 0.0, 1.0)
        if self.top_p <= 0.0:
            raise ParameterError("top_p must be above 0")
        _number("min_p", self.min_p, 0.0, 1.0)
        if self.min_p >= 1.0:
            raise ParameterError("min_p must be below 1")
        if self.seed is not None:
            _integer("seed", self.seed, -SEED_LIMIT, SEED_LIMIT)
        _boolean("ignore_eos", self.ignore_eos)
        _boolean("speculate", self.speculate)
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            if count is not None:
                _integer(name, count, 0, MAX_LOGPROBS)
        for name in ("stop", "stop_token_ids"):
            value: object = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
            elif isinstance(value, str):
                raise ParameterError(f"{name} must be a list, not one text")
        if not isinstance(self.stop, tuple) or len(self.stop) > MAX_STOPS:
            raise ParameterError(f"stop must be a list of at most {MAX_STOPS} texts")
        for text in self.stop:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARACTERS:
                raise ParameterError(f"stop texts must have 1 to {MAX_STOP_CHARACTERS} characters")
        if not isinstance(self.stop_token_ids, tuple) or len(self.stop_token_ids) > MAX_STOPS:
            raise ParameterError(f"stop_token_ids must be a list of at most {MAX_STOPS} ids")
        for token in self.stop_token_ids:
            _integer("stop_token_ids", token, 0, 2**31 - 1)


def _integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ParameterError(f"{name} must be an integer")
    if not low <= value <= high:
        raise ParameterError(f"{name} must be between {low} and {high}")


def _number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ParameterError(f"{name} must be a finite number")
    if not low <= value <= high:
        raise ParameterError(f"{name} must be between {low:g} and {high:g}")


def _boolean(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ParameterError(f"{name} must be true or false")
