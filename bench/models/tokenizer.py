"""The byte-level BPE tokenizer that both models share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bench.models.shapes import (
    CONTEXT_LENGTH,
    END_OF_TEXT,
    END_OF_TEXT_ID,
    VOCABULARY_SIZE,
)

# Line breaks with the indentation that follows them, a word with the space or underscores before
# it, up to three digits, a run of punctuation with the space before it, other white space.
SPLIT_PATTERN = (
    r"(?:\r?\n)+[ \t]*"
    r"| ?_*\p{L}+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+"
    r"|\s+"
)


def train_tokenizer(texts: Iterable[str], vocabulary_size: int = VOCABULARY_SIZE) -> Tokenizer:
    """Train byte-level BPE of exactly ``vocabulary_size`` ids; id 0 is ``<|endoftext|>``.

    Raises ``ValueError`` where the texts are too few to learn that many merges.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=40,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    if tokenizer.get_vocab_size() != vocabulary_size:
        raise ValueError(
            f"the texts yield {tokenizer.get_vocab_size()} tokens, not {vocabulary_size}: "
            "train on more text"
        )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` as transformers reads them."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(folder)
    # The class name that every release of transformers knows.
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def encode_stream(tokenizer: Tokenizer, texts: Sequence[str]) -> NDArray[np.uint16]:
    """All texts as one array of ids, ``<|endoftext|>`` before each and after the last."""
    pieces: list[NDArray[np.uint16]] = []
    end = np.array([END_OF_TEXT_ID], dtype=np.uint16)
    for start in range(0, len(texts), 64):
        for encoding in tokenizer.encode_batch(texts[start : start + 64]):
            pieces.append(end)
            pieces.append(np.array(encoding.ids, dtype=np.uint16))
    pieces.append(end)
    return np.concatenate(pieces)
