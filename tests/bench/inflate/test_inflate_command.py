"""``pdv-bench inflate`` as a user runs it: files, sizes, and everything that can go wrong."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from tiny_model import TinyPair, write_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.cli import main
from bench.inflate import shards
from bench.inflate.shapes import SHAPES
from pdv_mp import LLM, SamplingParams


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["inflate", *map(str, arguments)])


def test_pair_is_inflated_to_the_wanted_agreement_and_served(
    tiny_pair: TinyPair, make_shape: Callable[..., Path], tmp_path: Path
) -> None:
    output = tmp_path / "below" / "big"
    folder = tiny_pair.verifier.parent
    wanted = ("--agreement", 0.3, "--tolerance", 0.03, "--windows", 8, "--measure", "text")
    shape = make_shape(max_position_embeddings=512)
    result = run("--like", shape, "--from", folder, "--output", output, *wanted)
    assert result.exit_code == 0, result.output
    report = json.loads((output / "inflation.json").read_text())
    agreement = report["agreement"]
    assert agreement["wanted"] == 0.3
    assert abs(agreement["reached"] - 0.3) <= 0.03
    assert agreement["interval_95"][0] <= agreement["reached"] <= agreement["interval_95"][1]
    assert report["noise_scale"] > 0
    assert set(agreement["all"]) == {"text", "continuation"}
    assert report["differs_from_shape"]["rope_theta"] == [1000000.0, 10000.0]
    assert [path.name for path in output.parent.iterdir()] == ["big"]

    config = json.loads((output / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (144, 4)
    tokenizer = AutoTokenizer.from_pretrained(output)
    ids = tokenizer.encode("def add(first, second):")
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    options: dict[str, Any] = {"device": "cpu", "threads": 1, "kv_cache_memory": "16M"}
    with LLM(output, tiny_pair.draft, dtype="float32", **options) as served:
        (completion,) = served.generate([ids], params)
    model = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    expected = model.generate(
        torch.tensor([ids]), max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0
    )[0, len(ids) :]
    assert list(completion.ids) == expected.tolist()


def test_same_seed_gives_the_same_bytes(
    make_source: Callable[..., Path], make_shape: Callable[..., Path], tmp_path: Path
) -> None:
    shape = make_shape()
    common = ("--like", shape, "--from", make_source("llama"))
    wanted = ("--agreement", 0.5, "--windows", 4, "--tolerance", 0.1, "--measure", "random")
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        assert run(*common, *wanted, "--output", tmp_path / name, "--seed", seed).exit_code == 0
    one, two, three = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "three")
    )
    assert one == two != three


def test_several_shards_have_an_index_and_hold_the_same_numbers(
    make_source: Callable[..., Path],
    make_shape: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shards, "PIECE", 5000)  # tensors are made in many pieces
    common = ("--like", make_shape(), "--from", make_source("llama-biases"), "--dtype", "float32")
    split, whole = tmp_path / "split", tmp_path / "whole"
    result = run(*common, "--output", split, "--shard-size", 0.0005)
    assert result.exit_code == 0, result.output
    monkeypatch.undo()
    assert run(*common, "--output", whole).exit_code == 0
    index = json.loads((split / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in split.glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    assert all((split / file).stat().st_size < 520_000 for file in files)
    assert all((split / file).stat().st_size % 8 == 0 for file in files)
    total = 0
    with safe_open(whole / "model.safetensors", framework="pt") as expected:
        assert set(index["weight_map"]) == set(expected.keys())
        for name, file in index["weight_map"].items():
            with safe_open(split / file, framework="pt") as found:
                assert torch.equal(found.get_tensor(name), expected.get_tensor(name))
                total += found.get_tensor(name).nbytes
    assert index["metadata"]["total_size"] == total
    AutoModelForCausalLM.from_pretrained(split)


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        ("llama-2-7b", 6_738_415_616),
        ("tinyllama-1.1b", 1_100_048_384),
        ("codellama-34b", 33_743_970_304),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("smollm-135m", 134_515_008),
    ],
)
def test_dry_run_prints_the_published_sizes(shape: str, parameters: int, tmp_path: Path) -> None:
    result = run("--like", shape, "--output", tmp_path / "big", "--dry-run")
    assert result.exit_code == 0, result.output
    lines = dict(line.split()[:1] + line.split()[1:2] for line in result.output.splitlines()[:7])
    assert lines["total"] == f"{parameters:,}"
    assert not list(tmp_path.iterdir())


def test_table_covers_the_shapes_of_the_help() -> None:
    result = run("--help")
    assert all(name in result.output.replace("\n", " ") for name in SHAPES)
    assert all(shape.origin.startswith("https://") for shape in SHAPES.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--like", "llama-7b"), "did you mean llama-2-7b?"),
        (("--like", "smollm-135m"), "give --output"),
        (("--like", "smollm-135m", "--output", "x", "--agreement", "1.5"), "--agreement"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_shape_file_and_source_that_cannot_be_read(
    make_source: Callable[..., Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    assert "broken.json cannot be read" in run("--like", broken, "--dry-run").output
    result = run("--like", "smollm-135m", "--from", tmp_path, "--dry-run")
    assert result.exit_code == 1
    assert "config.json is missing" in result.output
    folder = tmp_path / "copy"
    shutil.copytree(make_source("llama"), folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    result = run("--like", "smollm-135m", "--from", folder, "--output", tmp_path / "big")
    assert result.exit_code == 1
    assert "the weights cannot be read" in result.output
    assert not (tmp_path / "big").exists()


def test_counterpart_must_know_the_same_tokens(
    make_source: Callable[..., Path], tiny_pair: TinyPair, tmp_path: Path
) -> None:
    common = ("--like", "smollm-135m", "--dry-run", "--from", make_source("llama"))
    assert run(*common, "--against", tiny_pair.draft).exit_code == 0
    folder = tmp_path / "other"
    shutil.copytree(make_source("llama"), folder)
    write_tokenizer(folder, special="<other>")
    result = run(*common, "--against", folder)
    assert result.exit_code == 1
    assert "another vocabulary" in result.output


def test_agreement_above_the_pairs_own_is_refused(
    tiny_pair: TinyPair, make_shape: Callable[..., Path], tmp_path: Path
) -> None:
    result = run(
        *("--like", make_shape(), "--from", tiny_pair.verifier.parent, "--windows", 4),
        *("--agreement", 0.99, "--measure", "text", "--output", tmp_path / "big"),
    )
    assert result.exit_code == 1
    assert "without noise" in result.output
    assert not (tmp_path / "big").exists()


def test_disk_that_is_too_small(
    make_source: Callable[..., Path],
    make_shape: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    output = tmp_path / "big"
    result = run("--like", make_shape(), "--from", make_source("llama"), "--output", output)
    assert result.exit_code == 1
    assert "another disk" in result.output
    assert not output.exists()


def test_folder_in_use_is_left_alone(
    make_source: Callable[..., Path], make_shape: Callable[..., Path], tmp_path: Path
) -> None:
    output = tmp_path / "big"
    output.mkdir()
    common = ("--like", make_shape(), "--from", make_source("llama"), "--output", output)
    (output / "mine").write_text("text")
    result = run(*common)
    assert result.exit_code == 1
    assert "not empty" in result.output
    (output / "mine").unlink()

    partial = tmp_path / ".big.partial"
    partial.mkdir()
    (partial / "mine").write_text("text")
    assert "not ours" in run(*common).output
    assert (partial / "mine").exists()
    (partial / "mine").unlink()

    with (partial / ".inflating").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another run is writing" in run(*common).output
    # Left by a run that was killed: taken over.
    (partial / "model.safetensors").write_text("half")
    assert run(*common).exit_code == 0
    assert not partial.exists()
    assert (output / "config.json").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_leaves_nothing(
    number: signal.Signals,
    make_source: Callable[..., Path],
    make_shape: Callable[..., Path],
    tmp_path: Path,
) -> None:
    output = tmp_path / "big"
    source = make_source("llama")
    # The program interrupts itself in the midst of the second file.
    program = (
        "import os, sys\n"
        "from bench.cli import main\n"
        "from bench.inflate import shards\n"
        "write = shards._write\n"
        "def interrupted(file, piece):\n"
        "    if '00002' in file.name:\n"
        f"        assert os.path.exists({str(tmp_path / '.big.partial')!r})\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "    return write(file, piece)\n"
        "shards._write = interrupted\n"
        "main(sys.argv[1:])\n"
    )
    arguments = ("inflate", "--like", make_shape(), "--from", source, "--output", output)
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments), "--shard-size", "0.0003"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=100,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Aborted" in done.stderr
    assert not [path for path in tmp_path.iterdir() if "big" in path.name]


def test_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.cli", "--help"], capture_output=True, text=True, check=True
    )
    assert "inflate" in done.stdout
