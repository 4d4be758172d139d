"""What a model folder says about chats: its template and the texts of its special tokens."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MAX_TEMPLATE_BYTES = 1024 * 1024
MAX_FILE_BYTES = 32 * 1024 * 1024
"""Of a file of JSON, which may describe thousands of tokens beside the template."""

SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""Names by which templates know special tokens, those of transformers."""


def describe_chat(folder: Path) -> dict[str, Any]:
    """Fields of a ``description``. As in transformers, ``chat_template.jinja`` goes before
    ``chat_template.json`` and that before ``tokenizer_config.json``; of several templates it is the
    one named ``default``. What cannot be read, a template of over 1 MiB and a file of over 32 MiB
    are logged and count as absent."""
    settings = {
        **_json(folder / "special_tokens_map.json"),
        **_json(folder / "tokenizer_config.json"),
    }
    found = _text(folder / "chat_template.jinja", MAX_TEMPLATE_BYTES)
    if found is None:
        found = _json(folder / "chat_template.json").get("chat_template")
    if found is None:
        found = settings.get("chat_template")
    template = _default(found)
    if template is not None and len(template.encode("utf-8", "replace")) > MAX_TEMPLATE_BYTES:
        logger.warning(
            "the chat template of %s is ignored: it is over %d bytes", folder, MAX_TEMPLATE_BYTES
        )
        template = None
    return {"chat_template": template, "special_tokens": _special_tokens(settings)}


def _text(path: Path, most: int) -> str | None:
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > most:
            logger.warning("%s is ignored: it is over %d bytes", path, most)
            return None
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        logger.warning("%s is ignored: %s", path, error)
        return None


def _json(path: Path) -> dict[str, Any]:
    text = _text(path, MAX_FILE_BYTES)
    try:
        value = {} if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        logger.warning("%s is ignored: %s", path, error)
        return {}
    return value if isinstance(value, dict) else {}


def _default(template: Any) -> str | None:
    if isinstance(template, list):
        named = {entry.get("name"): entry for entry in template if isinstance(entry, dict)}
        template = named.get("default", {}).get("template")
    return template if isinstance(template, str) else None


def _special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name in SPECIAL_TOKENS:
        token = settings.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            found[name] = text
    return found
