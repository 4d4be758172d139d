"""Fields that are known elsewhere, would change the answer, and are not offered here.

To ignore them would give an answer to another question, so any value but one that changes nothing
is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.errors import ApiError

_NEVER: tuple[Any, ...] = ()
_EMPTY: tuple[Any, ...] = ([], {}, "")

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "logit_bias": _EMPTY,
    "suffix": _EMPTY,
    "use_beam_search": (False,),
    "early_stopping": (False,),
    "response_format": ({"type": "text"},),
    "tools": _EMPTY,
    "tool_choice": ("none", "auto"),
    "functions": _EMPTY,
    "function_call": ("none", "auto"),
    "prompt_logprobs": _NEVER,
    "truncate_prompt_tokens": _NEVER,
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "logits_processors": _EMPTY,
    "allowed_token_ids": _NEVER,
    "bad_words": _EMPTY,
    "structured_outputs": _EMPTY,
    "guided_json": _EMPTY,
    "guided_regex": _EMPTY,
    "guided_choice": _EMPTY,
    "guided_grammar": _EMPTY,
    "json_schema": _EMPTY,
    "regex": _EMPTY,
    "ebnf": _EMPTY,
    "stop_regex": _EMPTY,
    "lora_path": _EMPTY,
    "prompt_embeds": _EMPTY,
    "chat_template": _NEVER,
    "chat_template_kwargs": _EMPTY,
    "continue_final_message": (False,),
    "documents": _EMPTY,
    "mm_processor_kwargs": _EMPTY,
    "modalities": (["text"],),
    "audio": _EMPTY,
    "reasoning_effort": ("none",),
    "web_search_options": _NEVER,
    "kv_transfer_params": _EMPTY,
}
"""Values of each that change nothing, besides ``null``."""


def check_refused(extra: Mapping[str, Any]) -> None:
    """Raises ApiError for the first of these fields that asks for something."""
    for name, value in extra.items():
        if value is None or name not in NEUTRAL:
            continue
        if not any(_same(value, neutral) for neutral in NEUTRAL[name]):
            raise ApiError("bad_request", f"{name} is not supported by this server", name)


def _same(value: Any, neutral: Any) -> bool:
    if isinstance(value, bool) != isinstance(neutral, bool):
        return False
    return bool(value == neutral)
