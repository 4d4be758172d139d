"""Prompts from files that users give."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bench.load.errors import WorkloadError

_HUMAN, _MODEL = ("human", "user"), ("gpt", "assistant", "chatgpt", "bard", "bing")


@dataclass(frozen=True, slots=True)
class FilePrompt:
    """A prompt's ids, and how long its answer is where the file says so."""

    ids: list[int]
    max_tokens: int | None = None


def read_jsonl(path: Path, tokenizer: Tokenizer) -> list[FilePrompt]:
    """A file with a JSON map on each line: ``prompt``, a text or a list of ids, and ``max_tokens``
    if the answer's length is given. Empty lines are passed over.

    Raises WorkloadError that names the file and line.
    """
    found = []
    for fields, where in json_lines(path):
        ids = prompt_ids(fields, tokenizer, where)
        found.append(FilePrompt(ids, _max_tokens(fields, where)))
    if not found:
        raise WorkloadError(f"{path} has no prompts")
    return found


def read_share_gpt(path: Path, tokenizer: Tokenizer) -> list[FilePrompt]:
    """A JSON list of ``{"conversations": [{"from": …, "value": …}, …]}``. Of each conversation that
    begins with a human's turn and the model's the first is the prompt, as it is, and the second
    says how long the answer is; others, and those with an empty turn, are passed over.

    Raises WorkloadError that names the file and line.
    """
    found = []
    for conversation, where in _items(_text(path), path):
        turns = [_turn(turn, where) for turn in _turns(conversation, where)[:2]]
        if [_side(speaker) for speaker, _ in turns] != ["human", "model"]:
            continue
        (_, question), (_, answer) = turns
        ids = tokenizer.encode(question).ids
        length = len(tokenizer.encode(answer, add_special_tokens=False).ids)
        if ids and length:
            found.append(FilePrompt(ids, length))
    if not found:
        raise WorkloadError(
            f"{path} has no conversation that begins with a human's turn and the model's"
        )
    return found


def json_lines(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The maps of a JSONL file, each with ``file, line n``. Raises WorkloadError."""
    for number, line in enumerate(_text(path).split("\n"), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise WorkloadError(f"{where}: this is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise WorkloadError(f"{where}: this is not a JSON map")
        yield fields, where


def prompt_ids(fields: dict[str, Any], tokenizer: Tokenizer, where: str) -> list[int]:
    """The field ``prompt``, a text or a list of ids. Raises WorkloadError."""
    prompt = fields.get("prompt")
    if isinstance(prompt, str):
        ids: list[int] = tokenizer.encode(_unicode(prompt, where)).ids
    elif isinstance(prompt, list) and all(map(_is_id, prompt)):
        ids = prompt
    else:
        raise WorkloadError(f"{where}: prompt must be a text or a list of token ids")
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if not ids:
        raise WorkloadError(f"{where}: prompt is empty")
    if max(ids) >= size:
        raise WorkloadError(f"{where}: token id {max(ids)} is not in the vocabulary of {size}")
    return ids


def whole_number(fields: dict[str, Any], name: str, where: str) -> int:
    """A field that is a whole number of at least 1. Raises WorkloadError."""
    value = fields.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31:
        return value
    raise WorkloadError(f"{where}: {name} must be a whole number of at least 1")


def _max_tokens(fields: dict[str, Any], where: str) -> int | None:
    given = fields.get("max_tokens") is not None
    return whole_number(fields, "max_tokens", where) if given else None


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise WorkloadError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise WorkloadError(f"{path}, line {line}: this is not UTF-8") from error


def _unicode(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise WorkloadError(f"{where}: a text has a lone surrogate, which is no character") from (
            error
        )
    return text


def _items(text: str, path: Path) -> Iterator[tuple[Any, str]]:
    """The items of a JSON list, each with ``file, line n``, where it begins."""
    decoder = json.JSONDecoder()

    def where(at: int) -> str:
        return f"{path}, line {text.count(chr(10), 0, at) + 1}"

    def after_space(at: int) -> int:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        return at

    at = after_space(0)
    if text[at : at + 1] != "[":
        raise WorkloadError(f"{where(at)}: this is not a JSON list of conversations")
    at = after_space(at + 1)
    separator = text[at : at + 1]
    if separator == "]":
        return
    while separator != "]":
        try:
            item, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise WorkloadError(f"{where(error.pos)}: this is not JSON: {error.msg}") from error
        except RecursionError as error:
            raise WorkloadError(f"{where(at)}: this is nested too deep") from error
        yield item, where(at)
        end = after_space(end)
        separator = text[end : end + 1]
        if separator not in ("]", ","):
            raise WorkloadError(f"{where(end)}: this is not JSON: a comma or ] is missing")
        at = after_space(end + 1)


def _turns(conversation: Any, where: str) -> list[Any]:
    turns = conversation.get("conversations") if isinstance(conversation, dict) else None
    if not isinstance(turns, list):
        raise WorkloadError(f"{where}: a conversation must be a map with a list conversations")
    return turns


def _turn(turn: Any, where: str) -> tuple[str, str]:
    speaker, value = (
        (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
    )
    if not isinstance(speaker, str) or not isinstance(value, str):
        raise WorkloadError(f"{where}: a turn must be a map with the texts from and value")
    return speaker, _unicode(value, where)


def _side(speaker: str) -> str:
    if speaker in _HUMAN:
        return "human"
    return "model" if speaker in _MODEL else speaker
