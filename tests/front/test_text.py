"""Incremental detokenization and stop texts, against decoding and searching the whole."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import pytest
from front.front_harness import small_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from pdv_mp.config import ConfigError
from pdv_mp.front.stops import OutputText, StopTexts
from pdv_mp.front.text import TextCodec

LLAMA = decoders.Sequence(
    [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
)
GEMMA = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
PIECES = ["▁", "▁▁", "a", "▁the", "é", "▁▁▁▁", "STOP", "▁日本", "..", "b▁"]


def sentencepiece_like(decoder: object) -> Tokenizer:
    vocabulary = {"<unk>": 0, "<s>": 1}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for piece in PIECES:
        vocabulary[piece] = len(vocabulary)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    return tokenizer


@functools.cache
def codec_of(name: str) -> TextCodec:
    if name == "byte-level":
        tokenizer = small_tokenizer()
        tokenizer.add_tokens(["plain added é"])
    else:
        decoder = {"llama": LLAMA, "gemma": GEMMA, "metaspace": decoders.Metaspace()}[name]
        tokenizer = sentencepiece_like(decoder)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(f"{folder}/tokenizer.json")
        return TextCodec(Path(folder))


NAMES = ["byte-level", "llama", "gemma", "metaspace"]
# Bytes of one, two, three and four byte characters, so that whole ones come up often.
BYTES = [0x20, 0x41, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xED, 0xA0, 0xFF]


def byte_ids(codec: TextCodec) -> list[int]:
    found = [codec.tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in BYTES]
    if None in found:
        found = list(range(1, 257))
    return [id for id in found if id is not None]


@st.composite
def outputs(draw: st.DrawFn, name: str) -> list[int]:
    codec = codec_of(name)
    size = codec.tokenizer.get_vocab_size()
    token = st.one_of(
        st.integers(0, size + 3),
        st.sampled_from(byte_ids(codec)),
        st.integers(size - len(PIECES), size - 1),
    )
    return draw(st.lists(token, max_size=24))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_join_to_the_whole(name: str, data: st.DataObject) -> None:
    codec = codec_of(name)
    ids = data.draw(outputs(name))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=5)))
    detokenizer = codec.detokenizer()
    pieces = [
        detokenizer.push(ids[start:end])
        for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True)
    ]
    pieces.append(detokenizer.flush())
    assert "".join(pieces) == codec.decode(ids)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_what_came_out_is_never_taken_back(name: str, data: st.DataObject) -> None:
    """Whatever follows, the text so far is a beginning of the text of the whole."""
    codec = codec_of(name)
    ids, more = data.draw(outputs(name)), data.draw(outputs(name))
    assert codec.decode(ids + more).startswith(codec.detokenizer().push(ids))


@pytest.mark.parametrize("name", ["byte-level", "llama", "gemma"])
def test_characters_are_whole_and_early(name: str) -> None:
    codec = codec_of(name)
    detokenizer = codec.detokenizer()
    if name == "byte-level":
        ids = codec.encode("日本🙂x")
    else:
        ids = [codec.tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "日本🙂".encode()]
        ids.append(codec.tokenizer.token_to_id("a"))
    pieces = [detokenizer.push([id]) for id in ids]
    assert "�" not in "".join(pieces)
    assert "".join(pieces) == codec.decode(ids)
    assert detokenizer.flush() == ""


def reference(text: str, stops: list[str]) -> tuple[int, str] | None:
    """Where the first stop text ends and which it is, by looking at every end in turn."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return end, max(found, key=len)
    return None


STOPS = st.lists(st.text("abé日", min_size=1, max_size=4), min_size=1, max_size=4)


@settings(max_examples=500, deadline=None)
@given(stops=STOPS, text=st.text("abé日", max_size=30))
def test_stop_texts_are_found_like_by_hand(stops: list[str], text: str) -> None:
    matcher = StopTexts(stops)
    state, read, found = matcher.scan(0, text)
    wanted = reference(text, stops)
    if wanted is None:
        assert (read, found) == (len(text), None)
        held = matcher.depth[state]
        longest = max(
            size
            for size in range(len(text) + 1)
            if any(stop.startswith(text[len(text) - size :]) for stop in stops)
        )
        assert held == longest
    else:
        assert (read, found) == wanted


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_output_is_cut_before_the_first_stop(name: str, data: st.DataObject) -> None:
    """Pushed in any portions: ``ids`` end with the first token whose text completes a stop."""
    codec = codec_of(name)
    ids = data.draw(outputs(name))
    stops = data.draw(
        st.lists(st.sampled_from(["é", "STOP", "a a", "€", " ", "S", "日本a", "A€"]), max_size=3)
    )
    whole = codec.decode(ids)
    wanted_ids, wanted_text, wanted_stop = len(ids), whole, None
    for count in range(1, len(ids) + 1):
        found = reference(codec.decode(ids[:count]), stops)
        if found is not None:
            end, wanted_stop = found
            wanted_ids = count
            wanted_text = codec.decode(ids[:count])[: end - len(wanted_stop)]
            break
    output = OutputText(codec.detokenizer(), stops)
    texts: list[str] = []
    taken, stop = 0, None
    while taken < len(ids) and stop is None:
        portion = ids[taken : taken + data.draw(st.integers(1, 6))]
        piece = output.push(portion, final=taken + len(portion) == len(ids))
        texts.append(piece.text)
        taken += piece.num_ids
        stop = piece.stop
    assert (taken, "".join(texts), stop) == (wanted_ids, wanted_text, wanted_stop)


def test_special_tokens_have_no_text() -> None:
    codec = codec_of("byte-level")
    assert 0 in codec.special
    assert codec.detokenizer().push([0, 0]) == ""


def test_the_tokenizers_own_template_is_used(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = small_tokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", 0)]
    )
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    codec = TextCodec(tmp_path)
    ids = codec.encode("the quick brown fox")
    assert ids[0] == 0
    assert codec.decode(ids) == "the quick brown fox"


def test_unusable_tokenizers_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json does not exist"):
        TextCodec(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(ConfigError, match="cannot be read"):
        TextCodec(tmp_path)
    tokenizer = sentencepiece_like(decoders.CTC())
    path.write_text(json.dumps(json.loads(tokenizer.to_str())))
    with pytest.raises(ConfigError, match="CTC"):
        TextCodec(tmp_path)
