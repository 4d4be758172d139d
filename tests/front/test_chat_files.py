"""What ``describe`` finds in a model folder, and texts without a tokenizer's own template."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from tiny_model import write_tokenizer
from tokenizers import Tokenizer, processors

from pdv_mp.front.chat_files import MAX_TEMPLATE_BYTES, describe_chat
from pdv_mp.front.text import TextCodec
from pdv_mp.wire import tokenize as wire
from pdv_mp.workers.tokenizer_process import BatchTokenizer


def write(folder: Path, name: str, value: object) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / name).write_text(text, encoding="utf-8")


def test_nothing_is_there(tmp_path: Path) -> None:
    assert describe_chat(tmp_path) == {"chat_template": None, "special_tokens": {}}


def test_the_file_of_its_own_goes_first(tmp_path: Path) -> None:
    tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None}
    write(tmp_path, "tokenizer_config.json", {"chat_template": "third", **tokens})
    expected = {"bos_token": "<s>", "eos_token": "</s>"}
    assert describe_chat(tmp_path) == {"chat_template": "third", "special_tokens": expected}
    write(tmp_path, "chat_template.json", {"chat_template": "second"})
    assert describe_chat(tmp_path)["chat_template"] == "second"
    write(tmp_path, "chat_template.jinja", "first é")
    assert describe_chat(tmp_path)["chat_template"] == "first é"


def test_of_several_the_default(tmp_path: Path) -> None:
    templates = [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": templates})
    assert describe_chat(tmp_path)["chat_template"] == "yes"


def test_a_description_of_many_tokens_may_be_longer_than_a_template(tmp_path: Path) -> None:
    tokens = {str(id): {"content": f"<unused{id}>"} for id in range(40_000)}
    config = {"added_tokens_decoder": tokens, "chat_template": "here"}
    assert len(json.dumps(config)) > MAX_TEMPLATE_BYTES
    write(tmp_path, "tokenizer_config.json", config)
    assert describe_chat(tmp_path)["chat_template"] == "here"


def test_a_template_has_a_limit_wherever_it_is(tmp_path: Path) -> None:
    long = "x" * (MAX_TEMPLATE_BYTES + 1)
    write(tmp_path, "tokenizer_config.json", {"chat_template": long, "bos_token": "<s>"})
    expected = {"chat_template": None, "special_tokens": {"bos_token": "<s>"}}
    assert describe_chat(tmp_path) == expected
    write(tmp_path, "tokenizer_config.json", {"chat_template": long[1:]})
    assert describe_chat(tmp_path)["chat_template"] == long[1:]


@pytest.mark.parametrize("text", ["{", "[]", "x" * (MAX_TEMPLATE_BYTES + 1), '{"chat_template":1}'])
def test_what_cannot_be_used_counts_as_absent(tmp_path: Path, text: str) -> None:
    write(tmp_path, "tokenizer_config.json", text)
    assert describe_chat(tmp_path) == {"chat_template": None, "special_tokens": {}}


def test_a_bare_text_has_no_first_token(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    path = str(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(path)
    codec = TextCodec(tmp_path)
    bare = codec.encode("add", bare=True)
    assert codec.encode("add") == [0, *bare]
    message = wire.Texts.of([1, 2], [b"add", b"add"], [True, False])
    decoded, _ = wire.decode(bytes(wire.encode(message, 0)), time.monotonic_ns())
    assert isinstance(decoded, wire.Texts)
    process = BatchTokenizer(codec, lambda keys: None)
    process.take(decoded)
    answer = process.step()
    assert answer is not None
    assert answer.counts.tolist() == [len(bare), len(bare) + 1]
    assert answer.ids.tolist() == [*bare, 0, *bare]
    assert [codec.token_bytes(id) for id in (0, *bare)] == [b"<|endoftext|>", *_pieces(codec, bare)]
    assert codec.token_bytes(10**6) == b""


def _pieces(codec: TextCodec, ids: list[int]) -> list[bytes]:
    return [codec.decode([id]).encode() for id in ids]
