"""Text to ids and, piece by piece, ids to text.

The text of a request is ``tokenizer.decode`` of all its ids without special tokens. Streaming it
means to say, after each token, which part of that text no later token can change. What can change
is little, and depends on the tokenizer's decoder:

- byte-level BPE: the bytes of an unfinished character;
- byte-fallback tokens (``<0xE2>``): a whole run of them, since the decoder replaces every byte of
  a run that is not UTF-8 as a whole.

Everything else is decoded one token at a time, whatever comes later.
"""

from __future__ import annotations

import codecs
import json
import logging
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from pdv_mp.config import ConfigError

logger = logging.getLogger(__name__)


class TextError(RuntimeError):
    """A text cannot be tokenized."""


class Detokenizer(Protocol):
    """Ids of one request in, text out. What is returned is final and holds whole characters."""

    def push(self, ids: Sequence[int]) -> str:
        """Text that these ids complete."""

    def pending(self) -> str:
        """What :meth:`flush` would add, where that is text already; "" for part of a character."""

    def flush(self) -> str:
        """The rest, when no more ids come."""


class TextCodec:
    """The tokenizer of a model folder. Raises ConfigError when there is none that can be used."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(f"{path} does not exist; the model needs a tokenizer.json")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise ConfigError(f"{path} cannot be read: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        self.longest_token = max((len(token) for token in vocabulary), default=1)
        decoders = _decoders(json.loads(tokenizer.to_str())["decoder"])
        names = [decoder["type"] for decoder in decoders]
        self.special = frozenset(
            id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        self._bytes: _TokenBytes | None = None
        self._audible: frozenset[int] = frozenset()
        self._byte_tokens: frozenset[int] = frozenset()
        self._anchor: list[int] = []
        if names == ["ByteLevel"]:
            self._bytes = _TokenBytes(tokenizer, self.special)
            return
        self._audible = frozenset(vocabulary.values()) - self.special
        if not all(map(_is_local, decoders)):
            raise ConfigError(
                f"the tokenizer's decoder {' + '.join(names)} cannot be streamed; byte-level BPE "
                "and SentencePiece-like tokenizers can"
            )
        if "ByteFallback" in names:
            self._byte_tokens = frozenset(
                id for token, id in vocabulary.items() if _is_byte_token(token)
            )
        self._anchor = self._find_anchor(sorted(vocabulary.values()))

    def encode(self, text: str, *, bare: bool = False) -> list[int]:
        """Ids of a prompt, with what the tokenizer's own template adds, such as a first BOS, unless
        it is to be ``bare``.

        Raises TextError if the tokenizer fails; the log says how.
        """
        try:
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=not bare).ids
        except Exception as error:  # the library raises plain Exception
            # Its message may quote the prompt, which no log may hold.
            where = "".join(traceback.format_tb(error.__traceback__))
            kind = type(error).__name__
            logger.error("tokenizing %d characters failed: %s at\n%s", len(text), kind, where)
            raise TextError("the prompt could not be tokenized") from error
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for in the middle of a text: part of a character perhaps;
        the name of a special token; nothing for an id that no token has."""
        token: str | None = self.tokenizer.id_to_token(id)
        if token is None:
            return b""
        if id in self.special:
            return token.encode()
        if self._bytes is not None:
            return self._bytes[id]
        if id in self._byte_tokens:
            return bytes([int(token[3:5], 16)])
        return self.decode([*self._anchor, id])[len(self.decode(self._anchor)) :].encode()

    def detokenizer(self) -> Detokenizer:
        """A fresh incremental detokenizer."""
        if self._bytes is not None:
            return _ByteLevelDetokenizer(self._bytes)
        return _RunDetokenizer(self, self._audible, self._byte_tokens, self._anchor)

    def _find_anchor(self, ids: Sequence[int]) -> list[int]:
        """A token after which every text comes out as in the middle of an output."""
        for id in ids:
            if id in self.special or id in self._byte_tokens:
                continue
            text = self.decode([id])
            if text and text == text.strip() and self.decode([id, id]).startswith(text):
                return [id]
        raise ConfigError("the tokenizer has no token of plain text")


def _decoders(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [part for inner in decoder["decoders"] for part in _decoders(inner)]
    return [decoder]


def _is_local(decoder: dict[str, Any]) -> bool:
    """Whether a token's text depends on no token after it, byte-fallback runs excepted."""
    if decoder["type"] == "Strip":
        return bool(decoder["stop"] == 0)
    if decoder["type"] == "Replace":
        return len(decoder["pattern"].get("String", "")) == 1
    return decoder["type"] in ("ByteFallback", "Fuse", "Metaspace", "WordPiece")


def _is_byte_token(token: str) -> bool:
    if len(token) != 6 or not token.startswith("<0x") or not token.endswith(">"):
        return False
    return all(digit in "0123456789abcdefABCDEF" for digit in token[3:5])


def _byte_of_character() -> dict[str, int]:
    """The character by which byte-level BPE writes each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    characters.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return characters


class _TokenBytes(dict[int, bytes]):
    """Token id -> the bytes that it stands for, filled on first use."""

    _CHARACTERS = _byte_of_character()

    def __init__(self, tokenizer: Tokenizer, special: frozenset[int]) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._special = special

    def __missing__(self, id: int) -> bytes:
        token = None if id in self._special else self._tokenizer.id_to_token(id)
        if token is None:
            value = b""
        elif all(character in self._CHARACTERS for character in token):
            value = bytes(self._CHARACTERS[character] for character in token)
        else:
            value = token.encode()
        self[id] = value
        return value


class _ByteLevelDetokenizer:
    """Bytes of the tokens through an incremental UTF-8 decoder."""

    def __init__(self, token_bytes: _TokenBytes) -> None:
        self._bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Sequence[int]) -> str:
        return self._decoder.decode(b"".join([self._bytes[id] for id in ids]))

    def pending(self) -> str:
        return ""

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _RunDetokenizer:
    """Decodes behind an anchor token; an open run of byte-fallback tokens is held.

    Tokens that are special or unknown leave no trace in the text, not even the end of a run; the
    others are ``audible``.
    """

    def __init__(
        self,
        codec: TextCodec,
        audible: frozenset[int],
        byte_tokens: frozenset[int],
        anchor: list[int],
    ) -> None:
        self._codec = codec
        self._audible = audible
        self._byte_tokens = byte_tokens
        self._anchor = anchor
        self._anchor_length = len(codec.decode(anchor))
        self._started = False  # whether text has come out; before it, blanks may be stripped
        self._held: list[int] = []

    def push(self, ids: Sequence[int]) -> str:
        self._held.extend(id for id in ids if id in self._audible)
        end = len(self._held)
        while end and self._held[end - 1] in self._byte_tokens:
            end -= 1
        if not end:
            return ""
        text = self._decode(self._held[:end])
        if text or self._started:
            self._started = True
            del self._held[:end]
        return text

    def pending(self) -> str:
        if not self._held:
            return ""
        text = self._decode(self._held)
        return "" if "�" in text else text

    def flush(self) -> str:
        text = self._decode(self._held) if self._held else ""
        self._held.clear()
        return text

    def _decode(self, ids: list[int]) -> str:
        if not self._started:
            return self._codec.decode(ids)
        return self._codec.decode(self._anchor + ids)[self._anchor_length :]
