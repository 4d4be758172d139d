"""From a request to a checkpoint: the steps of ``pdv-bench inflate``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.inflate.agreement import Agreement, Measurement, Question, Sample
from bench.inflate.contents import Inflation
from bench.inflate.layout import Layout, make_layout
from bench.inflate.names import tensor_shapes
from bench.inflate.noise import perturbed
from bench.inflate.output import check_free, check_space, whole_folder
from bench.inflate.search import Found, find_scale
from bench.inflate.shapes import TargetShape
from bench.inflate.shards import Shard, split, total_bytes, write_shards
from bench.inflate.source import SmallPair, read_config, read_tensors
from pdv_mp.model.config_file import read_json

REPORT = "inflation.json"
REPORT_VERSION = 1
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_SMALL_FILES_BYTES = 1 << 24
"""Room for everything that is not weights."""


@dataclass(frozen=True, slots=True)
class Wish:
    """The agreement that is wanted, and how it is measured."""

    agreement: float
    tolerance: float
    question: Question
    sample: Sample


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is known before a byte is written."""

    shape: TargetShape
    pair: SmallPair
    layout: Layout
    dtype: torch.dtype
    shards: tuple[Shard, ...]
    seed: int

    @property
    def nbytes(self) -> int:
        """Bytes of the weight files."""
        return total_bytes(self.shards, str(self.layout.config["dtype"]), self.dtype.itemsize)


def make_plan(shape: TargetShape, pair: SmallPair, dtype: str, shard_bytes: int, seed: int) -> Plan:
    """Fit the pair's model into the shape. Raises InflateError where that cannot be."""
    layout = make_layout(read_config(pair.inflated), shape, dtype)
    torch_dtype: torch.dtype = getattr(torch, dtype)
    shards = split(tensor_shapes(layout.target), torch_dtype.itemsize, shard_bytes)
    return Plan(shape, pair, layout, torch_dtype, tuple(shards), seed)


def search_scale(
    plan: Plan, wish: Wish, report: Callable[[float, Measurement], None]
) -> tuple[Found, dict[str, Measurement]]:
    """The scale of noise for the wanted agreement, and what other questions say there.

    Raises InflateError where the wanted agreement cannot be reached.
    """
    agreement = Agreement(plan.pair, wish.question, wish.sample, plan.seed, plan.dtype)
    found = find_scale(agreement.measure, wish.agreement, wish.tolerance, report)
    measured: dict[str, Measurement] = {wish.question: found.measurement}
    other: dict[Question, Question] = {"text": "continuation", "continuation": "text"}
    if wish.question in other:
        question = other[wish.question]
        asked = Agreement(plan.pair, question, wish.sample, plan.seed, plan.dtype)
        measured[question] = asked.measure(found.scale)
    return found, measured


def write_checkpoint(
    plan: Plan,
    output: Path,
    wish: Wish | None,
    found: Found | None,
    measured: Mapping[str, Measurement],
    advance: Callable[[int], None],
) -> None:
    """Write the whole checkpoint, or nothing. Raises InflateError, OSError."""
    check_free(output)
    check_space(output, plan.nbytes + _SMALL_FILES_BYTES)
    scale = found.scale if found else 0.0
    small = read_tensors(plan.pair.inflated, plan.layout.source)
    weights = perturbed(small, scale, plan.seed, plan.dtype)
    with whole_folder(output) as folder:
        contents = Inflation(plan.layout, weights, plan.dtype).contents()
        write_shards(folder, plan.shards, contents, plan.dtype, plan.seed, advance)
        _write_json(folder / "config.json", plan.layout.config)
        _copy_small_files(plan, folder)
        _write_json(folder / REPORT, report(plan, wish, found, measured))


def report(
    plan: Plan, wish: Wish | None, found: Found | None, measured: Mapping[str, Measurement]
) -> dict[str, Any]:
    """What the file beside the checkpoint says."""
    layout = plan.layout
    result: dict[str, Any] = {
        "schema_version": REPORT_VERSION,
        "like": plan.shape.name,
        "shape_from": plan.shape.origin,
        "inflated": str(plan.pair.inflated),
        "counterpart": str(plan.pair.counterpart),
        "role": plan.pair.role,
        "dtype": str(layout.config["dtype"]),
        "seed": plan.seed,
        "weight_bytes": plan.nbytes,
        "same_function_up_to_tokens": min(layout.source.context_limit, layout.target.context_limit),
        "layers_that_do_nothing": layout.target.num_layers - layout.source.num_layers,
        "differs_from_shape": differences(plan),
        "noise_scale": found.scale if found else 0.0,
        "agreement": None,
    }
    if wish is not None and found is not None:
        result["agreement"] = {
            "wanted": wish.agreement,
            "tolerance": wish.tolerance,
            "reached": found.measurement.rate,
            "interval_95": [found.measurement.low, found.measurement.high],
            "measured_on": wish.question,
            "measurements": found.steps,
            **asdict(wish.sample),
            "all": {question: asdict(one) for question, one in measured.items()},
        }
    return result


def differences(plan: Plan) -> dict[str, list[Any]]:
    """Settings that are not the shape's: [the shape's, the written one]."""
    shape, target = plan.shape.parse(), plan.layout.target
    pairs = {
        "rope_theta": (shape.rope.theta, target.rope.theta),
        "rope_type": (shape.rope.kind, target.rope.kind),
        "rms_norm_eps": (shape.rms_norm_eps, target.rms_norm_eps),
        "tie_word_embeddings": (shape.tie_word_embeddings, target.tie_word_embeddings),
        "attention_bias": (shape.attention_bias, target.attention_bias),
        "attention_output_bias": (shape.attention_output_bias, target.attention_output_bias),
        "mlp_bias": (shape.mlp_bias, target.mlp_bias),
    }
    return {key: list(pair) for key, pair in pairs.items() if pair[0] != pair[1]}


def _copy_small_files(plan: Plan, folder: Path) -> None:
    source = plan.pair.inflated
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    generation = source / "generation_config.json"
    values = read_json(generation) if generation.is_file() else {}
    values.pop("transformers_version", None)
    values.setdefault("bos_token_id", plan.layout.config["bos_token_id"])
    values.setdefault("eos_token_id", plan.layout.config["eos_token_id"])
    _write_json(folder / "generation_config.json", values)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
