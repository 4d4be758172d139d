from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bench.models.shapes import END_OF_TEXT, END_OF_TEXT_ID, VOCABULARY_SIZE
from bench.models.tokenizer import encode_stream, train_tokenizer
from pdv_mp import assets

SHIPPED = AutoTokenizer.from_pretrained(assets.verifier_path())

code_like = st.text(
    st.sampled_from(" \t\n\r_()[]{}=.,:'\"#\\0123456789abcdefxyzAZé€漢😀\u00a0\u3000")
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), code_like))
def test_round_trip_is_lossless(text: str) -> None:
    ids = SHIPPED.encode(text)
    assert SHIPPED.decode(ids) == text
    assert all(0 <= token < VOCABULARY_SIZE for token in ids)


def test_round_trip_of_every_held_out_file() -> None:
    for _, text in assets.heldout_files():
        assert SHIPPED.decode(SHIPPED.encode(text)) == text


def test_special_tokens_are_recognised_and_never_added() -> None:
    assert len(SHIPPED) == VOCABULARY_SIZE
    assert SHIPPED.bos_token_id == SHIPPED.eos_token_id == END_OF_TEXT_ID
    assert SHIPPED.encode("x = 1") == SHIPPED.encode("x = 1", add_special_tokens=False)
    assert SHIPPED.encode(END_OF_TEXT) == [END_OF_TEXT_ID]


def test_a_line_break_and_its_indentation_are_one_token() -> None:
    assert len(SHIPPED.encode("\n        ")) == 1
    assert len(SHIPPED.encode("\n\n    ")) == 1


def test_both_models_have_the_same_tokenizer() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        verifier = (assets.verifier_path() / name).read_bytes()
        assert verifier == (assets.draft_path() / name).read_bytes()


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ValueError, match="train on more text"):
        train_tokenizer(["a b c"], 4096)


def test_the_stream_separates_documents() -> None:
    tokenizer = train_tokenizer(["def function(argument):\n    return argument\n"] * 4, 280)
    stream = encode_stream(tokenizer, ["def f", "return"])
    assert stream.dtype == np.uint16
    assert (stream == END_OF_TEXT_ID).sum() == 3
    assert stream[0] == stream[-1] == END_OF_TEXT_ID
    assert tokenizer.decode(stream.tolist()) == "def freturn"
