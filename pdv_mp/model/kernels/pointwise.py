"""What a layer does between its products, one Triton kernel for each: on a GPU a decoding step is
short enough for the number of kernels to count.

Arithmetic is float32; results are rounded to the type of the activations where PyTorch's operators
would round them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_COLUMNS = 1024


@triton.jit
def _rms_norm(x, weight, out, size, eps, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, SIZE)
    there = column < size
    values = tl.load(x + row * size + column, mask=there, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 0) / size + eps)
    normed = (values * scale).to(out.dtype.element_ty).to(tl.float32)
    weights = tl.load(weight + column, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row * size + column, (normed * weights).to(out.dtype.element_ty), mask=there)


@triton.jit
def _rotate_and_store(
    qkv,
    rotations,
    positions,
    places,
    pool,
    norms,
    eps,
    stride,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_PAIRS: tl.constexpr,
    NORMED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    pair = tl.arange(0, PADDED_PAIRS)
    there = pair < HEAD_DIM // 2
    source = qkv + row * stride + head * HEAD_DIM + 2 * pair
    first = tl.load(source, mask=there, other=0.0).to(tl.float32)
    second = tl.load(source + 1, mask=there, other=0.0).to(tl.float32)
    if head < QUERY_HEADS + KV_HEADS:
        if NORMED:
            scale = tl.rsqrt(tl.sum(first * first + second * second, 0) / HEAD_DIM + eps)
            kind = qkv.dtype.element_ty
            weights = norms + head * HEAD_DIM + 2 * pair
            first = (first * scale).to(kind).to(tl.float32)
            second = (second * scale).to(kind).to(tl.float32)
            first = first * tl.load(weights, mask=there, other=0.0).to(tl.float32)
            second = second * tl.load(weights + 1, mask=there, other=0.0).to(tl.float32)
            first = first.to(kind).to(tl.float32)
            second = second.to(kind).to(tl.float32)
        angle = rotations + tl.load(positions + row) * HEAD_DIM + 2 * pair
        cosine = tl.load(angle, mask=there, other=1.0)
        sine = tl.load(angle + 1, mask=there, other=0.0)
        turned = first * cosine - second * sine
        second = first * sine + second * cosine
        first = turned
    if head < QUERY_HEADS:
        target = source
    else:
        place = tl.load(places + row)
        target = pool + (place * (2 * KV_HEADS) + head - QUERY_HEADS) * HEAD_DIM + 2 * pair
    tl.store(target, first.to(qkv.dtype.element_ty), mask=there)
    tl.store(target + 1, second.to(qkv.dtype.element_ty), mask=there)


@triton.jit
def _silu_times(gate_up, out, width, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < width
    source = gate_up + row * 2 * width + column
    gate = tl.load(source, mask=there, other=0.0).to(tl.float32)
    up = tl.load(source + width, mask=there, other=0.0).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + column, (silu * up).to(out.dtype.element_ty), mask=there)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root mean square normalisation (arXiv 1910.07467) of contiguous [N, H] by weight [H]."""
    out = torch.empty_like(x)
    size = x.shape[1]
    padded = triton.next_power_of_2(size)
    warps = min(16, max(1, padded // 512))
    _rms_norm[(len(x),)](x, weight, out, size, eps, SIZE=padded, num_warps=warps)
    return out


def rotate_and_store(
    qkv: torch.Tensor,
    rotations: torch.Tensor,
    positions: torch.Tensor,
    places: torch.Tensor,
    layer: torch.Tensor,
    norms: torch.Tensor | None,
    eps: float,
) -> None:
    """Rotate queries in place; rotate keys and put them and the values into a layer's blocks.

    ``qkv`` [N, (num_heads + 2 * num_kv_heads) * head_dim], pairs interleaved as in ``rope.rotate``.
    ``rotations`` float32 [positions, head_dim / 2, 2], cosine and sine. ``positions``, ``places``
    int64 [N]. ``layer`` [blocks, block_size, 2, num_kv_heads, head_dim]. ``norms`` [num_heads +
    num_kv_heads, head_dim]: weights of the normalisation of each query and key head, if any.
    """
    num_kv_heads, head_dim = layer.shape[3:]
    heads = qkv.shape[1] // head_dim
    _rotate_and_store[(len(qkv), heads)](
        qkv,
        rotations,
        positions,
        places,
        layer,
        qkv if norms is None else norms,
        eps,
        qkv.stride(0),
        QUERY_HEADS=heads - 2 * num_kv_heads,
        KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        PADDED_PAIRS=triton.next_power_of_2(head_dim // 2),
        NORMED=norms is not None,
        num_warps=1,
    )


def silu_times(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, [N, W], of contiguous [N, 2 * W]."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
    grid = (rows, triton.cdiv(width, _COLUMNS))
    _silu_times[grid](gate_up, out, width, COLUMNS=_COLUMNS, num_warps=4)
    return out
