"""Triton's kernels, in Triton's interpreter on a CPU and compiled on a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="needs triton, which builds of torch for a CPU do not bring",
)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels themselves are tested here")
def test_kernels_in_tritons_interpreter() -> None:
    path = Path(__file__).with_name("interpreted_kernels.py")
    options = ("-q", "-x", "-p", "no:cacheprovider", str(path))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout


SHAPES = {
    "decode": tuple((start, 1) for start in (0, 15, 16, 511, 1000, 77, 2047, 300)),
    "verify": tuple((start, 5) for start in (0, 12, 511, 1500)),
    "prefill": ((0, 512), (128, 384), (0, 1)),
    "mixed": ((0, 300), (900, 1), (63, 9), (64, 2)),
}
DTYPES = ("float32", "float16", "bfloat16")


@pytest.mark.gpu
@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(4, 8, 64), (8, 1, 128), (2, 7, 128)])
def test_attention_on_a_gpu(heads: tuple[int, int, int], dtype: str, shape: str) -> None:
    from triton_checks import Case, check_attention

    for splits in (None, 1) if shape == "prefill" else (None, 8):
        case = Case(SHAPES[shape], *heads, 16, splits, getattr(torch, dtype), 0)
        check_attention(case, "cuda")


@pytest.mark.gpu
@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "family", ["llama", "llama, tied, one head of each", "qwen2", "qwen3", "all biases"]
)
def test_forward_on_a_gpu(family: str, dtype: str) -> None:
    from triton_checks import check_forward

    check_forward(family, getattr(torch, dtype), "cuda")
