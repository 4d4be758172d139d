"""Safetensors headers: files as the library writes them are accepted, damaged ones are named."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import TinyPair, make_tiny_pair

from launcher.checkpoint import check_weights
from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.errors import ModelError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_pair(tmp_path).verifier


def test_whole_checkpoint_is_accepted_without_torch(tiny_pair: TinyPair) -> None:
    program = (
        "import sys; from pathlib import Path; from launcher.checkpoint import check_weights\n"
        "from pdv_mp.model.architecture import ModelConfig\n"
        "folder = Path(sys.argv[1]); check_weights(folder, ModelConfig.from_folder(folder))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tiny_pair.verifier)], check=True)


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    name = "model.layers.0.input_layernorm.weight"
    if how == "renamed":
        header["model.norm.wait"] = header.pop(name)
    elif how == "missing":
        del header[name]
    elif how == "quantised":
        header[name]["dtype"] = "F8_E4M3"
    elif how == "no shape":
        del header[name]["shape"]
    text = json.dumps(header).encode()
    changed = len(text).to_bytes(8, "little") + text + whole[8 + length :]
    cut = {"empty": b"", "in the length": whole[:5], "in the header": whole[:100]}
    cut |= {"in the data": whole[:-1], "too long": whole + b"x"}
    path.write_bytes(cut.get(how, changed))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("empty", "cut short: it has no whole header"),
        ("in the length", "cut short"),
        ("in the header", "cut short: it has no whole header"),
        ("in the data", "damaged or cut short: it has "),
        ("too long", "damaged or cut short: it has "),
        ("no shape", "its header cannot be read"),
        ("renamed", "tensor model.norm.wait is not one of this model's"),
        ("missing", "tensor model.layers.0.input_layernorm.weight is missing"),
        ("quantised", "input_layernorm.weight is F8_E4M3"),
    ],
)
def test_fault_is_named(folder: Path, how: str, message: str) -> None:
    damage(folder / "model.safetensors", how)
    with pytest.raises(ModelError) as caught:
        check_weights(folder, ModelConfig.from_folder(folder))
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


def test_other_shape_is_named(tiny_pair: TinyPair) -> None:
    config = ModelConfig.from_folder(tiny_pair.verifier)
    wider = dataclasses.replace(config, intermediate_size=config.intermediate_size * 2)
    with pytest.raises(ModelError, match=r"has shape \[.*\], expected \["):
        check_weights(tiny_pair.verifier, wider)
