"""Which attention kernels torch has for the shapes that the server uses, and which it takes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu_facts import gpu
from bench.gpu_facts.facts import Report

_BACKENDS = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")
_KV_HEADS, _GROUP, _DIM = 8, 4, 128

SHAPES = {
    "draft, 8 x 1 row of 512, all visible": (8, 1, 512, False),
    "draft, 8 x 1 row of up to 512": (8, 1, 512, True),
    "verify, 8 x 5 rows of 512": (8, 5, 512, True),
    "verify, 8 x 5 rows of 515": (8, 5, 515, True),
    "prefill, 1 x 128 rows of 512": (1, 128, 512, True),
}
"""Lanes, query rows of each, keys, and whether there is a mask, as memory/kv_cache.py makes them:
the heads of a group are further rows."""


def measure_attention(report: Report) -> None:
    """Every backend on every shape, in both types."""
    for dtype in (torch.bfloat16, torch.float32):
        for name, shape in SHAPES.items():
            _measure_shape(report, f"{str(dtype).removeprefix('torch.')}: {name}", dtype, *shape)


def _measure_shape(
    report: Report, label: str, dtype: torch.dtype, lanes: int, rows: int, keys: int, masked: bool
) -> None:
    device = gpu.device()
    width = rows * _GROUP
    query = torch.randn(lanes, width, _KV_HEADS, _DIM, dtype=dtype, device=device).transpose(1, 2)
    gathered = torch.randn(lanes, keys, 2, _KV_HEADS, _DIM, dtype=dtype, device=device)
    key, value = gathered.permute(2, 0, 3, 1, 4).unbind(0)
    mask = None
    if masked:
        mask = torch.zeros(lanes, 1, width, keys, dtype=dtype, device=device)
        mask[..., -1] = -torch.inf

    def attend() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    chosen = SDPBackend(torch._fused_sdp_choice(query, key, value, attn_mask=mask)).name
    report.text(f"{label}: torch takes", chosen)
    repeats = report.repeats(50, 5)
    with sdpa_kernel(SDPBackend.MATH):
        exact = attend().float()
    for backend in _BACKENDS:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            try:
                error = float((attend().float() - exact).abs().max())
                found = gpu.device_milliseconds(attend, repeats)
            except RuntimeError as refusal:
                report.text(f"{label}: {backend}", f"refused: {_first_line(refusal)}")
                continue
        differs = "" if backend == "MATH" else f", differs from MATH by {error:.1e}"
        report.numbers(
            f"{label}: {backend}{differs}",
            "µs",
            [1000 * milliseconds for milliseconds in found],
        )


def _first_line(error: RuntimeError) -> str:
    return (str(error).strip().splitlines() or ["?"])[0]
