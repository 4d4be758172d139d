"""A tiny Llama pair with a byte-level tokenizer, made in well under two seconds.

The draft is the verifier's first layer with some noise on its weights, so that the verifier accepts
a part of what it proposes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

VOCABULARY = 300
CONTEXT = 512
EOS = "<|endoftext|>"

_TEXT = (
    "def add(first, second):\n    return first + second\n",
    "class Point:\n    def __init__(self, x, y):\n        self.x = x\n        self.y = y\n",
    "for index in range(10):\n    print(index)\n",
)


@dataclass(frozen=True, slots=True)
class TinyPair:
    """Folders of the two checkpoints."""

    verifier: Path
    draft: Path


def make_tiny_pair(folder: Path, *, noise: float = 0.02, context: int = CONTEXT) -> TinyPair:
    """Writes verifier (2 layers, hidden size 32) and draft (1 layer) below ``folder``, float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def config(layers: int) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context,
            bos_token_id=None,
            eos_token_id=0,
            tie_word_embeddings=False,
            initializer_range=0.3,
        )

    pair = TinyPair(folder / "verifier", folder / "draft")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        verifier = LlamaForCausalLM(config(2))
        draft = LlamaForCausalLM(config(1))
        # The second layer adds little, so that the first alone is a fair guess at both.
        for parameter in verifier.model.layers[1].parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.3)
        weights = verifier.state_dict()
        for name, parameter in draft.named_parameters():
            parameter.copy_(weights[name] + noise * torch.randn(parameter.shape))
        verifier.save_pretrained(pair.verifier)
        draft.save_pretrained(pair.draft)
    for path in (pair.verifier, pair.draft):
        write_tokenizer(path)
    return pair


def write_tokenizer(folder: Path, *, special: str = EOS) -> None:
    """Writes a byte-level BPE tokenizer of VOCABULARY tokens, id 0 being the end of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
