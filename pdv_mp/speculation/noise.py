"""Counter-based Gumbel noise g(seed, position, token id), the same bits wherever it is computed.

A token is drawn from a law by adding this noise to the log-probabilities and taking the argmax. A
value depends on nothing but the request's seed, the absolute position of the token being sampled,
the token's id, and what the draw is for (:class:`Purpose`): not on the batch, the process, the
machine or the device.

Bits. From (seed, position) comes the state of a SplitMix64 generator (Steele, Lea and Flood, OOPSLA
2014), whose n-th number is the two 32-bit row keys of the n-th purpose; this is done on the host,
once per row. A token's 32 bits are two rounds of ``lowbias32`` (Christopher Wellons,
hash-prospector, public domain), between which the keys come in by exclusive or and by an odd
multiplier; the first round is shared by all rows. Everything per token is int32, because its
multiplication vectorises on every CPU and that of int64 does not.

Noise. With x the low 31 bits, ``u = (x + 0.5) / 2^31`` and ``g = -log(-log1p(-u))``. The winning
end of g is where u is small, and there float32 has its finest steps, so the large values (to 22.2)
are resolved as well as the common ones. At the losing end u stops at 1 - 2^-24, where g = -2.81.

The logarithms are written out in additions, multiplications and divisions, each a pass of its own:
IEEE 754 fixes the bits of these, while a library's log differs in the last bit between CPUs,
devices and even the ends of an array. Given u in float32, g is within 1e-6 of the exact value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pdv_mp.speculation import host_noise

_SPLITMIX_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_SPLITMIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_SPLITMIX_2 = np.uint64(0x94D049BB133111EB)

_LOWBIAS_1 = 0x7FEB352D
_LOWBIAS_2 = 0x846CA68B - 2**32

_ONE_BITS = torch.tensor(0x3F800000, dtype=torch.int32)
_SQRT_HALF_BITS = 0x3F3504F3
_EXPONENT_BITS = -(2**23)
_LN2_PER_EXPONENT_STEP = math.log(2) / 2**23
_U_STEP = 2.0**-31 * (1 - 2.0**-24)

# -2 * atanh(s) / s as a polynomial in s * s, highest power first. Least relative error (1.2e-7) for
# |s| <= 3 - 2 * sqrt(2), that is for s = (m - 1) / (m + 1) with m from sqrt(1/2) to sqrt(2).
_ATANH_3, _ATANH_2, _ATANH_1 = -0.41296373, -0.66652224, -2.00000024

_BLOCK_ELEMENTS = 1 << 16

_SMALL = 1 << 15
"""Elements up to which torch does not spread an operation over threads either."""


class Purpose(IntEnum):
    """What a random number at a position is for; those for different purposes are independent.

    ``TOKEN``: the verifier's own draw, which a draft that shares the noise makes too. ``DRAFT``: a
    draft's draw that must not know the verifier's. ``ACCEPTANCE``: the test of such a draft.
    """

    TOKEN = 0
    DRAFT = 1
    ACCEPTANCE = 2


def row_keys(
    seeds: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
    purpose: Purpose = Purpose.TOKEN,
) -> npt.NDArray[np.int32]:
    """The two 32-bit keys of each row: int32 [R, 2].

    ``seeds`` int64 [R]. ``positions`` int64 [R]: index, in prompt and output together, of the token
    that is being sampled.
    """
    keys = _random_bits(seeds, positions, purpose)
    low, high = keys.astype(np.uint32), (keys >> np.uint64(32)).astype(np.uint32)
    return np.stack((low, high), axis=1).view(np.int32)


def uniforms(
    seeds: npt.NDArray[np.int64], positions: npt.NDArray[np.int64], purpose: Purpose
) -> npt.NDArray[np.float64]:
    """A number in (0, 1), neither end included, for each row: float64 [R]; arguments as above."""
    bits = _random_bits(seeds, positions, purpose) >> np.uint64(12)
    numbers: npt.NDArray[np.float64] = (bits.astype(np.float64) + 0.5) * 2.0**-52
    return numbers


def gumbel(keys: Tensor, vocab_size: int) -> Tensor:
    """Noise for every token of the vocabulary: float32 [R, vocab_size], on the device of ``keys``.

    ``keys`` int32 [R, 2], from :func:`row_keys`.
    """
    if _is_small(keys, vocab_size):
        return torch.from_numpy(
            host_noise.gumbel(keys.numpy(), host_noise.hashed_vocabulary(vocab_size))
        )
    noise = torch.empty((keys.shape[0], vocab_size), dtype=torch.float32, device=keys.device)
    for rows, block in _blocks(keys, _hashed_vocabulary(noise)):
        noise[rows] = block
    return noise


def add_gumbel_(scores: Tensor, keys: Tensor) -> Tensor:
    """``scores += gumbel(keys, V)`` for float32 scores [R, V], without a second such tensor."""
    if _is_small(keys, scores.shape[1]):
        return scores.add_(gumbel(keys, scores.shape[1]))
    for rows, block in _blocks(keys, _hashed_vocabulary(scores)):
        scores[rows] += block
    return scores


def gumbel_at(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Noise for some tokens of each row: float32 [R, C], as ``token_ids`` (any integer type).

    The bits are those that :func:`gumbel` has in the columns ``token_ids``.
    """
    if _is_small(keys, token_ids.shape[1]):
        hashed = host_noise.hashed_tokens(token_ids.numpy())
        return torch.from_numpy(host_noise.gumbel(keys.numpy(), hashed))
    tokens = token_ids.to(torch.int32, copy=True)
    noise = torch.empty(tokens.shape, dtype=torch.float32, device=keys.device)
    for rows, block in _blocks(keys, _lowbias32(tokens, torch.empty_like(tokens))):
        noise[rows] = block
    return noise


def _random_bits(
    seeds: npt.NDArray[np.int64], positions: npt.NDArray[np.int64], purpose: Purpose
) -> npt.NDArray[np.uint64]:
    by_seed = _splitmix64(seeds.astype(np.uint64) + _SPLITMIX_GAMMA)
    by_position = _splitmix64(positions.astype(np.uint64) * _SPLITMIX_GAMMA)
    steps = np.uint64(int(_SPLITMIX_GAMMA) * purpose % 2**64)
    return _splitmix64((by_seed ^ by_position) + steps)


def _is_small(keys: Tensor, columns: int) -> bool:
    return keys.device.type == "cpu" and keys.shape[0] * columns <= _SMALL


def _splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * _SPLITMIX_1
    values = (values ^ (values >> np.uint64(27))) * _SPLITMIX_2
    values ^= values >> np.uint64(31)
    return values


def _hashed_vocabulary(like: Tensor) -> Tensor:
    """The first round of every column's token id, int32 [R, V], the rows all being the same."""
    tokens = torch.arange(like.shape[1], dtype=torch.int32, device=like.device)
    return _lowbias32(tokens, torch.empty_like(tokens)).expand(like.shape)


def _blocks(keys: Tensor, hashed: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Noise from keys [R, 2] and once-hashed token ids [R, C]: row ranges and their noise.

    A block's tensor is overwritten by the next. On a CPU a block is small enough for the some
    fifty passes over it to stay in the cache; elsewhere there is one block.
    """
    rows, columns = hashed.shape
    if hashed.numel() == 0:
        return
    step = min(rows, max(1, _BLOCK_ELEMENTS // columns)) if keys.device.type == "cpu" else rows
    spare = torch.empty((4, step, columns), dtype=torch.int32, device=keys.device)
    multipliers = keys[:, 1:] | 1
    for first in range(0, rows, step):
        block = slice(first, min(first + step, rows))
        bits, exponent, work, noise = spare[:, : block.stop - first]
        torch.bitwise_xor(hashed[block], keys[block, :1], out=bits)
        bits.mul_(multipliers[block])
        _lowbias32(bits, exponent)
        _bits_to_gumbel(bits, exponent, work.view(torch.float32), noise.view(torch.float32))
        yield block, noise.view(torch.float32)


def _lowbias32(bits: Tensor, work: Tensor) -> Tensor:
    """Hash in place."""
    _xor_with_shifted(bits, 16, work)
    bits.mul_(_LOWBIAS_1)
    _xor_with_shifted(bits, 15, work)
    bits.mul_(_LOWBIAS_2)
    _xor_with_shifted(bits, 16, work)
    return bits


def _xor_with_shifted(bits: Tensor, shift: int, work: Tensor) -> None:
    """``bits ^= bits >>> shift``; int32 shifts its sign in, which the mask takes out again."""
    torch.bitwise_right_shift(bits, shift, out=work)
    work.bitwise_and_((1 << (32 - shift)) - 1)
    bits.bitwise_xor_(work)


def _bits_to_gumbel(bits: Tensor, exponent: Tensor, work: Tensor, out: Tensor) -> None:
    """``out = -log(-log1p(-u))``; uses up the other tensors."""
    value = bits.view(torch.float32)
    out.copy_(bits.bitwise_and_(0x7FFFFFFF))
    out.add_(0.5).mul_(-_U_STEP)
    # 1 - u = 2^e * m. Not m - 1 but (2^-e - 1) - 2^-e * u, which for e = 0 is -u without loss.
    torch.add(out, 1.0, out=value)
    _split_exponent(bits, exponent)
    torch.sub(_ONE_BITS, exponent, out=bits)
    out.mul_(value)
    value.sub_(1.0).add_(out)
    _negative_log(value, exponent, work, out)
    # The exponential variate in out is 2^e * m again; here m - 1 is exact.
    out_bits = out.view(torch.int32)
    _split_exponent(out_bits, exponent)
    torch.sub(out_bits, exponent, out=bits)
    value.sub_(1.0)
    _negative_log(value, exponent, work, out)


def _split_exponent(bits: Tensor, exponent: Tensor) -> None:
    """``exponent = e * 2^23`` for the float with these bits, 2^e * m, m in [sqrt(1/2), sqrt(2))."""
    torch.sub(bits, _SQRT_HALF_BITS, out=exponent)
    exponent.bitwise_and_(_EXPONENT_BITS)


def _negative_log(fraction: Tensor, exponent: Tensor, work: Tensor, out: Tensor) -> None:
    """``out = -(log(1 + fraction) + e * log(2))``; uses up the other tensors."""
    torch.add(fraction, 2.0, out=out)
    fraction.div_(out)
    torch.mul(fraction, fraction, out=out)
    torch.mul(out, _ATANH_3, out=work)
    work.add_(_ATANH_2).mul_(out).add_(_ATANH_1)
    fraction.mul_(work)
    out.copy_(exponent)
    out.mul_(-_LN2_PER_EXPONENT_STEP).add_(fraction)
