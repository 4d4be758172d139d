"""``--speculative-config``: how drafts are made, as one JSON object of the form that vLLM uses."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from pdv_mp.config import ConfigError, EngineConfig, SpeculationOptions, option_info

NGRAM = "ngram"
DRAFT_MODEL = "draft_model"
METHODS = (NGRAM, DRAFT_MODEL)

FLAG = "--speculative-config"
LEAST, MOST = 1, 4
"""Tokens of the runs that n-gram drafting looks up where nothing else is said."""
LONGEST_RUN = 16

_LOOKUP = ("prompt_lookup_min", "prompt_lookup_max")
_KEYS = ("method", "model", "num_speculative_tokens", *_LOOKUP)


@dataclass(frozen=True, slots=True)
class SpeculativeConfig:
    """``method``: ngram or draft_model. ``model``: the draft model, None for the default one.
    ``num_speculative_tokens``: None where the option of that name decides. ``least``, ``most``:
    tokens of the runs that are looked up."""

    method: str
    model: str | None = None
    num_speculative_tokens: int | str | None = None
    least: int = LEAST
    most: int = MOST


def parse(text: str) -> SpeculativeConfig:
    """Raises ConfigError, one sentence, for what is not such an object."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{FLAG} {text!r} is not JSON: {error.msg}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{FLAG} {text!r} is not a JSON object")
    unknown = sorted(found.keys() - set(_KEYS))
    if unknown:
        raise ConfigError(f"{FLAG}: unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}")
    method = found.get("method", DRAFT_MODEL if "model" in found else None)
    if method not in METHODS:
        said = "the key 'method' is missing" if method is None else f"unknown method {method!r}"
        raise ConfigError(f"{FLAG}: {said}; use one of {', '.join(METHODS)}")
    length = found.get("num_speculative_tokens")
    if length is not None:
        _check_length(length)
    model = found.get("model")
    if model is not None and (method == NGRAM or not isinstance(model, str) or not model):
        is_ngram = method == NGRAM
        reason = "ngram drafts without a model" if is_ngram else "name a folder or a hub id"
        raise ConfigError(f"{FLAG}: 'model' {model!r} is refused: {reason}")
    given = [key for key in _LOOKUP if key in found]
    if given and method != NGRAM:
        raise ConfigError(f"{FLAG}: {given[0]!r} is for the method ngram")
    least = _run_length(found, "prompt_lookup_min", LEAST)
    most = _run_length(found, "prompt_lookup_max", max(MOST, least))
    if least > most:
        raise ConfigError(f"{FLAG}: prompt_lookup_min {least} is over prompt_lookup_max {most}")
    return SpeculativeConfig(method, model, length, least, most)


def _check_length(length: Any) -> None:
    fields = {field.name: field for field in dataclasses.fields(SpeculationOptions)}
    info = option_info(fields["num_speculative_tokens"])
    low, high = int(info.minimum or 0), int(info.maximum or 0)
    if length in info.words:
        return
    if type(length) is not int or not low <= length <= high:
        raise ConfigError(
            f"{FLAG}: num_speculative_tokens {length!r} must be a whole number from {low} to "
            f"{high}, or 'auto'"
        )


def _run_length(found: dict[str, Any], key: str, default: int) -> int:
    value = found.get(key, default)
    if type(value) is not int or not 1 <= value <= LONGEST_RUN:
        raise ConfigError(f"{FLAG}: {key} {value!r} must be a whole number from 1 to {LONGEST_RUN}")
    return value


def ngram_of(options: SpeculationOptions) -> SpeculativeConfig | None:
    """What n-gram drafting is to do, None where a model drafts or nothing does."""
    if options.speculative_config is None:
        return None
    found = parse(options.speculative_config)
    return found if found.method == NGRAM else None


def folded(config: EngineConfig) -> EngineConfig:
    """The configuration in which the other options say what ``--speculative-config`` said, as far
    as they can: it keeps the n-gram method only.

    Raises ConfigError for what contradicts them.
    """
    text = config.speculation.speculative_config
    if text is None:
        return config
    found = parse(text)
    speculation, model = config.speculation, config.model
    length = found.num_speculative_tokens
    if length is not None:
        given = speculation.num_speculative_tokens
        if given not in ("auto", length):
            raise ConfigError(
                f"{FLAG} says num_speculative_tokens {length}, --num-speculative-tokens {given}"
            )
        speculation = dataclasses.replace(speculation, num_speculative_tokens=length)
    drafting = model.draft_model
    if found.method == NGRAM:
        if drafting not in (None, "none"):
            raise ConfigError(
                f"{FLAG} ngram drafts without a model: leave out --draft-model {drafting}"
            )
        model = dataclasses.replace(model, draft_model="none")
    else:
        if found.model is not None and drafting not in (None, found.model):
            raise ConfigError(f"{FLAG} says model {found.model}, --draft-model {drafting}")
        model = dataclasses.replace(model, draft_model=found.model or drafting)
        speculation = dataclasses.replace(speculation, speculative_config=None)
    return dataclasses.replace(config, speculation=speculation, model=model)
