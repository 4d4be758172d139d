"""A Llama checkpoint with a byte-level BPE tokenizer as a GGUF file, every tensor in float32.

llama.cpp rotates neighbouring pairs of a head's elements where Hugging Face rotates its two halves,
so rows of the query and key projections change places.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_REST = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def converted(source: Path, path: Path) -> Path:
    """The file, made on the first use and moved into place when it is whole."""
    if path.exists():
        return path
    import gguf

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.new")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if config["architectures"] != ["LlamaForCausalLM"]:
        raise ValueError(f"{source}: only a LlamaForCausalLM is written as GGUF here")
    writer = gguf.GGUFWriter(unfinished, "llama")
    _write_sizes(writer, config)
    _write_tokenizer(
        writer, gguf, json.loads((source / "tokenizer.json").read_text("utf-8")), config
    )
    for name, tensor in _tensors(source, config):
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return unfinished.rename(path)


def _write_sizes(writer: Any, config: dict[str, Any]) -> None:
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(0)  # all in float32


def _write_tokenizer(writer: Any, gguf: Any, file: dict[str, Any], config: dict[str, Any]) -> None:
    vocabulary = {index: text for text, index in file["model"]["vocab"].items()}
    added = {entry["id"]: entry["content"] for entry in file["added_tokens"]}
    kinds, texts = [], []
    for index in range(config["vocab_size"]):
        if index in added:
            kinds.append(gguf.TokenType.CONTROL)
        else:
            kinds.append(gguf.TokenType.NORMAL if index in vocabulary else gguf.TokenType.UNUSED)
        texts.append(added.get(index) or vocabulary.get(index) or f"[UNUSED{index}]")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in file["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    end = config["eos_token_id"]
    writer.add_eos_token_id(end[0] if isinstance(end, list) else end)
    writer.add_add_bos_token(False)


def _tensors(source: Path, config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    for path in sorted(source.glob("*.safetensors")):
        for name, tensor in _read(path):
            if name in _REST:
                yield _REST[name], tensor
                continue
            _, _, layer, part = name.split(".", 3)
            place = _BLOCK[part.removesuffix(".weight")]
            if place in heads:
                rows, columns = tensor.shape
                halves = tensor.reshape(heads[place], 2, rows // heads[place] // 2, columns)
                tensor = halves.swapaxes(1, 2).reshape(rows, columns)
            yield f"blk.{layer}.{place}.weight", tensor


def _read(path: Path) -> Iterator[tuple[str, Any]]:
    """Names and float32 arrays. numpy has no bfloat16: its bits are the upper half of float32's."""
    import numpy as np

    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            first, last = entry["data_offsets"]
            file.seek(8 + size + first)
            raw = file.read(last - first)
            if entry["dtype"] == "BF16":
                bits = np.frombuffer(raw, np.uint16).astype(np.uint32) << 16
                array = bits.view(np.float32)
            else:
                array = np.frombuffer(raw, {"F32": np.float32, "F16": np.float16}[entry["dtype"]])
            yield name, np.ascontiguousarray(array.astype(np.float32).reshape(entry["shape"]))
