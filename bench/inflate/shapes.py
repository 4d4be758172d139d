"""The table of shapes that ``--like`` knows by name, each with the public config it comes from.

Only what decides cost and memory is kept of those configs, under their own key names. A shape may
also be read from any ``config.json`` of a supported architecture.
"""

from __future__ import annotations

import difflib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.inflate.errors import InflateError
from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.config_file import read_json
from pdv_mp.model.errors import ModelError


@dataclass(frozen=True)
class TargetShape:
    """A shape to imitate: the content of a config.json and where it is from."""

    name: str
    origin: str
    values: dict[str, Any]

    def parse(self) -> ModelConfig:
        """The shape as our engine reads it. Raises InflateError for one that it cannot serve."""
        return parse_config(self.values, self.origin)


def _llama(**values: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        **values,
    }


SHAPES: dict[str, TargetShape] = {
    shape.name: shape
    for shape in (
        TargetShape(
            "llama-2-7b",
            "https://huggingface.co/meta-llama/Llama-2-7b-hf/blob/main/config.json",
            _llama(
                hidden_size=4096,
                num_hidden_layers=32,
                num_attention_heads=32,
                num_key_value_heads=32,
                head_dim=128,
                intermediate_size=11008,
                vocab_size=32000,
                rope_theta=10000.0,
                rms_norm_eps=1e-05,
                max_position_embeddings=4096,
                tie_word_embeddings=False,
            ),
        ),
        TargetShape(
            "tinyllama-1.1b",
            "https://huggingface.co/TinyLlama/TinyLlama-1.1B-Chat-v1.0/blob/main/config.json",
            _llama(
                hidden_size=2048,
                num_hidden_layers=22,
                num_attention_heads=32,
                num_key_value_heads=4,
                head_dim=64,
                intermediate_size=5632,
                vocab_size=32000,
                rope_theta=10000.0,
                rms_norm_eps=1e-05,
                max_position_embeddings=2048,
                tie_word_embeddings=False,
            ),
        ),
        TargetShape(
            "codellama-34b",
            "https://huggingface.co/codellama/CodeLlama-34b-hf/blob/main/config.json",
            _llama(
                hidden_size=8192,
                num_hidden_layers=48,
                num_attention_heads=64,
                num_key_value_heads=8,
                head_dim=128,
                intermediate_size=22016,
                vocab_size=32000,
                rope_theta=1000000.0,
                rms_norm_eps=1e-05,
                max_position_embeddings=16384,
                tie_word_embeddings=False,
            ),
        ),
        TargetShape(
            "qwen2.5-1.5b",
            "https://huggingface.co/Qwen/Qwen2.5-1.5B/blob/main/config.json",
            {
                "architectures": ["Qwen2ForCausalLM"],
                "model_type": "qwen2",
                "hidden_act": "silu",
                "hidden_size": 1536,
                "num_hidden_layers": 28,
                "num_attention_heads": 12,
                "num_key_value_heads": 2,
                "head_dim": 128,
                "intermediate_size": 8960,
                "vocab_size": 151936,
                "rope_theta": 1000000.0,
                "rms_norm_eps": 1e-06,
                "max_position_embeddings": 131072,
                "use_sliding_window": False,
                "tie_word_embeddings": True,
            },
        ),
        TargetShape(
            "smollm-135m",
            "https://huggingface.co/HuggingFaceTB/SmolLM-135M/blob/main/config.json",
            _llama(
                hidden_size=576,
                num_hidden_layers=30,
                num_attention_heads=9,
                num_key_value_heads=3,
                head_dim=64,
                intermediate_size=1536,
                vocab_size=49152,
                rope_theta=10000.0,
                rms_norm_eps=1e-05,
                max_position_embeddings=2048,
                tie_word_embeddings=True,
            ),
        ),
    )
}


def find_shape(like: str) -> TargetShape:
    """The shape of that name, or of the config.json (or the folder with one) at that path.

    Raises InflateError for anything else, with the nearest name as a hint.
    """
    if like.lower() in SHAPES:
        return SHAPES[like.lower()]
    path = Path(like).expanduser()
    if path.is_dir():
        path = path / "config.json"
    if path.is_file():
        try:
            return TargetShape(str(path), str(path), read_json(path))
        except ModelError as error:
            raise InflateError(str(error)) from None
    near = difflib.get_close_matches(like.lower(), SHAPES, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise InflateError(
        f"there is no shape {like!r}: give one of {', '.join(SHAPES)}, or the path of a "
        f"config.json{hint}"
    )


def parse_config(values: dict[str, Any], origin: str) -> ModelConfig:
    """What our engine reads out of a config.json with these values.

    Raises InflateError that names ``origin``.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(values), encoding="utf-8")
        try:
            return ModelConfig.from_folder(folder)
        except ModelError as error:
            text = str(error).replace(f"{folder}/config.json", origin).replace(folder, origin)
            raise InflateError(text) from None
