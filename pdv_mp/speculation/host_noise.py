"""The noise of pdv_mp/speculation/noise.py in numpy, for small blocks on a CPU.

The operations are the same, one by one, and so are the bits; what differs is that a call of numpy
costs a fraction of a call of torch, and the noise takes some fifty of them.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

_SHIFT_15, _SHIFT_16 = np.uint32(15), np.uint32(16)
_LOWBIAS_1, _LOWBIAS_2 = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)

_ONE_BITS = np.int32(0x3F800000)
_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_EXPONENT_BITS = np.int32(-(2**23))
_MINUS_LN2_PER_EXPONENT_STEP = np.float32(-math.log(2) / 2**23)
_MINUS_U_STEP = np.float32(-(2.0**-31) * (1 - 2.0**-24))
_HALF, _ONE, _TWO = np.float32(0.5), np.float32(1), np.float32(2)
_ATANH_3, _ATANH_2, _ATANH_1 = (np.float32(c) for c in (-0.41296373, -0.66652224, -2.00000024))


def gumbel(keys: npt.NDArray[np.int32], hashed: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    """Noise float32 [R, C] from row keys [R, 2] and once-hashed token ids [R, C] or [C]."""
    unsigned = keys.view(np.uint32)
    hashes = hashed ^ unsigned[:, :1]
    hashes *= unsigned[:, 1:] | np.uint32(1)
    _lowbias32(hashes, np.empty_like(hashes))
    return noise_of_bits(hashes)


def noise_of_bits(hashes: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    """``-log(-log1p(-u))`` of random bits, which it uses up: float32, as ``hashes``."""
    spare = np.empty_like(hashes)
    hashes &= np.uint32(0x7FFFFFFF)
    bits, exponent = hashes.view(np.int32), spare.view(np.int32)
    value, out = bits.view(np.float32), bits.astype(np.float32)
    work = np.empty_like(out)
    out += _HALF
    out *= _MINUS_U_STEP
    np.add(out, _ONE, out=value)
    _split_exponent(bits, exponent)
    np.subtract(_ONE_BITS, exponent, out=bits)
    out *= value
    value -= _ONE
    value += out
    _negative_log(value, exponent, work, out)
    out_bits = out.view(np.int32)
    _split_exponent(out_bits, exponent)
    np.subtract(out_bits, exponent, out=bits)
    value -= _ONE
    _negative_log(value, exponent, work, out)
    return out


def hashed_tokens(token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """The first round of hashing, which all rows share: uint32, as ``token_ids``."""
    tokens = token_ids.astype(np.uint32)
    _lowbias32(tokens, np.empty_like(tokens))
    return tokens


@lru_cache(maxsize=4)
def hashed_vocabulary(vocab_size: int) -> npt.NDArray[np.uint32]:
    """:func:`hashed_tokens` of every token id: uint32 [vocab_size], read-only."""
    tokens = hashed_tokens(np.arange(vocab_size))
    tokens.setflags(write=False)
    return tokens


def _lowbias32(bits: npt.NDArray[np.uint32], work: npt.NDArray[np.uint32]) -> None:
    np.right_shift(bits, _SHIFT_16, out=work)
    bits ^= work
    bits *= _LOWBIAS_1
    np.right_shift(bits, _SHIFT_15, out=work)
    bits ^= work
    bits *= _LOWBIAS_2
    np.right_shift(bits, _SHIFT_16, out=work)
    bits ^= work


def _split_exponent(bits: npt.NDArray[np.int32], exponent: npt.NDArray[np.int32]) -> None:
    np.subtract(bits, _SQRT_HALF_BITS, out=exponent)
    exponent &= _EXPONENT_BITS


def _negative_log(
    fraction: npt.NDArray[np.float32],
    exponent: npt.NDArray[np.int32],
    work: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
) -> None:
    np.add(fraction, _TWO, out=out)
    fraction /= out
    np.multiply(fraction, fraction, out=out)
    np.multiply(out, _ATANH_3, out=work)
    work += _ATANH_2
    work *= out
    work += _ATANH_1
    fraction *= work
    np.copyto(out, exponent, casting="unsafe")
    out *= _MINUS_LN2_PER_EXPONENT_STEP
    out += fraction
