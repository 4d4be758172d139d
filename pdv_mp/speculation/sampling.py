"""From logits to tokens, all rows of a batch at once.

A sampled row goes through the chain of transformers' temperature, top_k, top_p and min_p warpers,
in that order, and its token is the argmax of the processed log-probability plus Gumbel noise
(pdv_mp/speculation/noise.py), which has exactly the processed law. A greedy row is the argmax.

How the truncations are computed, so that no path through this file can give another result:

- ``z = (logits - max) / temperature``: 0 at the best token, so nothing cancels at low temperatures.
- Tokens are ranked by logit, equal ones by the higher id first, which decides what top_p keeps
  of equal tokens. transformers leaves that to its sort; a stable one ranks them so.
- top_k keeps every token whose logit is at least the k-th, ties included.
- top_p keeps a token if the mass ranked above it is less than top_p.
- min_p keeps a token if ``z >= log(min_p)``, the ratio to the best token's probability.

All of these keep the first so many ranks. Hence the winner among all tokens, if it is kept, is the
winner among those kept; if not, neither is any token ranked below it. So a row with top_p alone
needs no ranking: its best token is sought among all, and again among those ranked above the one
that was found, until the mass above it is less than top_p. The tokens left hold a share of the mass
before that is uniform at best, which makes the rounds few: 1 + log(1 / top_p) on average. A mass so
near top_p that rounding could decide is left to the ranking.

With top_k, a row's best few dozen tokens tell the whole support, provided that it ends among them;
rows where it does not are ranked further, in the end in full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pdv_mp.sampling_params import SamplingParams
from pdv_mp.speculation.noise import add_gumbel_, gumbel_at, row_keys

_MIN_CANDIDATES = 64
"""Tokens per row that are looked at first when a truncation is asked for."""

_MAX_CANDIDATES = 1024
"""Rows with a larger top_k do not enlarge the batch's number of candidates beyond this."""

_GROWTH = 8

_ROUNDS_PER_LOOK = {"cpu": 1, "cuda": 4}
"""Rounds after which the host looks which rows go on: elsewhere than on a CPU it has to wait."""

_MASS_SLACK = 2.0**-15
"""By how much a sum of probabilities in float32 must differ from top_p to be trusted.

The sums of torch are split into parts, and its exponential is good to 20 units in the last place,
so that their error is some 2^-18 at worst, and 2^-22 as a rule."""

_TOP_K_LIMIT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """The parameters of a batch's rows, one entry per row of logits.

    ``temperature`` float32, 0 for greedy; ``top_k`` int64, 0 for all; ``top_p``, ``min_p`` float64;
    ``seeds`` int64; ``positions`` int64: the index, in prompt and output together, of the token
    being sampled. All [R], on the host.
    """

    temperature: npt.NDArray[np.float32]
    top_k: npt.NDArray[np.int64]
    top_p: npt.NDArray[np.float64]
    min_p: npt.NDArray[np.float64]
    seeds: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def all_greedy(self) -> bool:
        """No row draws noise."""
        return not self.temperature.any()

    def select(self, index: npt.NDArray[np.int64]) -> SamplingRows:
        """Some of the rows."""
        return SamplingRows(
            self.temperature[index],
            self.top_k[index],
            self.top_p[index],
            self.min_p[index],
            self.seeds[index],
            self.positions[index],
        )


Sampler = Callable[[Tensor, SamplingRows], Tensor]
"""Chooses one token per row of logits, as :func:`sample` does."""


@dataclass(frozen=True, slots=True)
class SamplingColumns:
    """The sampling parameters of some sequences, [B] each; types as in :class:`SamplingRows`."""

    temperature: npt.NDArray[np.float32]
    top_k: npt.NDArray[np.int64]
    top_p: npt.NDArray[np.float64]
    min_p: npt.NDArray[np.float64]
    seeds: npt.NDArray[np.int64]


class SamplingTable:
    """The sampling parameters of every slot, in columns."""

    def __init__(self, num_slots: int) -> None:
        self._temperature = np.zeros(num_slots, np.float32)
        self._top_k = np.zeros(num_slots, np.int64)
        self._top_p = np.ones(num_slots, np.float64)
        self._min_p = np.zeros(num_slots, np.float64)
        self._seeds = np.zeros(num_slots, np.int64)

    def set(self, slot: int, params: SamplingParams, seed: int) -> None:
        """Write a slot's row. ``seed``: any int64, that of the request or one drawn for it.

        A temperature too small for float32 is greedy.
        """
        self._temperature[slot] = params.temperature
        self._top_k[slot] = min(max(params.top_k, 0), _TOP_K_LIMIT)
        self._top_p[slot] = params.top_p
        self._min_p[slot] = params.min_p
        self._seeds[slot] = seed

    def get(self, slots: npt.NDArray[np.int64]) -> SamplingColumns:
        """The parameters of some slots, to be put into another table."""
        return SamplingColumns(
            self._temperature[slots],
            self._top_k[slots],
            self._top_p[slots],
            self._min_p[slots],
            self._seeds[slots],
        )

    def put(self, slots: npt.NDArray[np.int64], columns: SamplingColumns) -> None:
        """Write what :meth:`get` of another table gave."""
        self._temperature[slots] = columns.temperature
        self._top_k[slots] = columns.top_k
        self._top_p[slots] = columns.top_p
        self._min_p[slots] = columns.min_p
        self._seeds[slots] = columns.seeds

    def all_greedy(self, slots: npt.NDArray[np.int64]) -> bool:
        """Whether none of these slots draws noise."""
        return not self._temperature[slots].any()

    def rows(self, slots: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> SamplingRows:
        """The rows of a batch: ``slots`` [R], one slot may occur many times; ``positions`` [R]."""
        return SamplingRows(
            temperature=self._temperature[slots],
            top_k=self._top_k[slots],
            top_p=self._top_p[slots],
            min_p=self._min_p[slots],
            seeds=self._seeds[slots],
            positions=np.asarray(positions, np.int64),
        )


def sample(logits: Tensor, rows: SamplingRows) -> Tensor:
    """One token per row: int64 [R], on the device of ``logits``.

    ``logits`` float32 [R, V], without NaN; -inf forbids a token. Of equal scores the lowest id
    wins. On a GPU the host waits only if some row asks for top_k or top_p: once for each of these,
    and again for the rare rows that the first candidates, or the first rounds, do not settle.
    """
    if rows.all_greedy:
        return _argmax(logits)
    vocab_size = logits.shape[1]
    greedy = rows.temperature == 0
    nucleus = ~greedy & (rows.top_k == 0) & (rows.top_p < 1)
    ranked = ~(greedy | nucleus) & _needs_ranking(rows, vocab_size)
    ids = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    for chosen, choose in (
        (greedy, _sample_greedy),
        (~(greedy | nucleus | ranked), _sample_unranked),
        (nucleus, _sample_nucleus),
        (ranked, _sample_ranked),
    ):
        if chosen.all():
            return choose(logits, rows)
        if chosen.any():
            index = np.flatnonzero(chosen)
            on_device = _to_device(index, logits)
            ids[on_device] = choose(logits[on_device], rows.select(index))
    return ids


def processed_logprobs(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Log-probabilities after the whole chain: float32 [R, V], -inf outside the support.

    ``logits`` as for :func:`sample`. A greedy row is 0 at its argmax.
    """
    greedy = rows.temperature == 0
    warm = replace(rows, temperature=np.where(greedy, np.float32(1), rows.temperature))
    z = _scaled(logits, warm)
    if warm.min_p.any():
        z.masked_fill_(z < _log_min_p(warm, z), -torch.inf)
    if greedy.any():
        index = _to_device(np.flatnonzero(greedy), logits)
        one_hot = torch.full_like(logits[index], -torch.inf)
        z[index] = one_hot.scatter_(1, _argmax(logits[index])[:, None], 0.0)
    ranked = ~greedy & _needs_ranking(rows, logits.shape[1])
    if ranked.any():
        index = _to_device(np.flatnonzero(ranked), logits)
        outside = _outside(logits[index], rows.select(np.flatnonzero(ranked)))
        z[index] = z[index].masked_fill_(outside, -torch.inf)
    return z.log_softmax(dim=-1)


class _Ranked(NamedTuple):
    """The best C tokens of each row by (logit, id), descending: all [R, C]."""

    logits: Tensor
    z: Tensor
    ids: Tensor


class _Support(NamedTuple):
    """``kept`` bool [R, C]: ranks in the support. ``complete`` bool [R]: there are no others."""

    kept: Tensor
    complete: Tensor


def _argmax(scores: Tensor) -> Tensor:
    """The lowest of the best ids. On a CPU numpy finds them several times faster than torch does,
    and elsewhere max does before argmax."""
    if scores.device.type == "cpu":
        return torch.from_numpy(scores.numpy().argmax(axis=-1))
    return scores.max(dim=-1).indices


def _sample_greedy(logits: Tensor, rows: SamplingRows) -> Tensor:
    del rows
    return _argmax(logits)


def _sample_unranked(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Rows that at most min_p truncates, which needs no ranking."""
    return _argmax(_noisy_(_scaled(logits, rows), rows))


def _noisy_(z: Tensor, rows: SamplingRows) -> Tensor:
    """Scores, in place of z: what min_p leaves, plus noise."""
    if rows.min_p.any():
        z.masked_fill_(z < _log_min_p(rows, z), -torch.inf)
    return add_gumbel_(z, _keys(rows, z))


def _sample_nucleus(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Rows with top_p and without top_k, by rounds."""
    z = _scaled(logits, rows)
    probs = z.softmax(dim=-1)
    scores = _noisy_(z, rows)
    top_p = _to_device(rows.top_p, logits)
    ids = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    open_rows, unsure_rows = np.arange(len(rows)), np.arange(0)
    open_logits = logits
    rounds_unseen = _ROUNDS_PER_LOOK[logits.device.type] - 1
    while len(open_rows):
        for _ in range(rounds_unseen):
            _, above, mass = _winner(open_logits, probs, scores)
            scores.masked_fill_((mass > top_p + _MASS_SLACK)[:, None] & ~above, -torch.inf)
        winners, above, mass = _winner(open_logits, probs, scores)
        # Only of the first in rank the mass above is 0; it is kept, however small top_p.
        kept = (mass < top_p - _MASS_SLACK) | (mass == 0)
        outside = mass > top_p + _MASS_SLACK
        is_kept, is_outside = torch.stack((kept, outside)).cpu().numpy()
        if len(open_rows) == len(rows):
            ids.copy_(winners)
        else:
            ids[_to_device(open_rows, logits)] = winners
        unsure_rows = np.concatenate((unsure_rows, open_rows[~(is_kept | is_outside)]))
        index = _to_device(np.flatnonzero(is_outside), logits)
        open_rows, open_logits = open_rows[is_outside], open_logits[index]
        probs, top_p = probs[index], top_p[index]
        scores = scores[index].masked_fill_(~above[index], -torch.inf)
    if len(unsure_rows):
        index = _to_device(unsure_rows, logits)
        ids[index] = _sample_ranked(logits[index], rows.select(unsure_rows))
    return ids


def _winner(logits: Tensor, probs: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [R] of the best scores, what ranks above them bool [R, V], and the mass of that [R]."""
    winners = _argmax(scores)
    of_winner = logits.gather(1, winners[:, None])
    above = logits == of_winner
    # int32, which is compared several times faster than int64.
    tokens = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device)
    above &= tokens > winners[:, None].int()
    above |= logits > of_winner
    return winners, above, (probs * above).sum(dim=-1)


def _sample_ranked(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Rows with top_k: among the best candidates; where these do not do, among more."""
    vocab_size = logits.shape[1]
    mass = _full_mass(logits, rows)
    count = _num_candidates(rows, vocab_size)
    ids, complete = _draw(_rank(logits, count, rows), mass, rows)
    open_rows = np.arange(len(rows))
    while count < vocab_size and not bool(complete.all()):
        count = min(vocab_size, _GROWTH * count)
        open_rows = open_rows[~complete.cpu().numpy()]
        index = _to_device(open_rows, logits)
        some = rows.select(open_rows)
        ids[index], complete = _draw(_rank(logits[index], count, some), mass[index], some)
    return ids


def _outside(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Which tokens the chain cuts away: bool [R, V]; found among candidates as a draw is."""
    mass = _full_mass(logits, rows)
    outside = torch.ones_like(logits, dtype=torch.bool)
    count = _num_candidates(rows, logits.shape[1])
    open_rows = np.arange(len(rows))
    while len(open_rows):
        index = _to_device(open_rows, logits)
        some = rows.select(open_rows)
        best = _rank(logits[index], count, some)
        kept, complete = _support(best, mass[index], some)
        outside[index] = outside[index].scatter_(1, best.ids, ~kept)
        if count == logits.shape[1]:
            break
        count = min(logits.shape[1], _GROWTH * count)
        open_rows = open_rows[~complete.cpu().numpy()]
    return outside


def _needs_ranking(rows: SamplingRows, vocab_size: int) -> npt.NDArray[np.bool_]:
    """Rows whose support depends on ranks; min_p alone compares with the best token only."""
    return ((rows.top_k > 0) & (rows.top_k < vocab_size)) | (rows.top_p < 1)


def _num_candidates(rows: SamplingRows, vocab_size: int) -> int:
    """Enough for every top_k and one token more, which shows that the k-th has no equals left."""
    wanted = rows.top_k[rows.top_k < _MAX_CANDIDATES].max(initial=0) + 1
    return min(vocab_size, max(int(wanted), _MIN_CANDIDATES))


def _scaled(logits: Tensor, rows: SamplingRows) -> Tensor:
    """z [R, V]: logits less their maximum, over the temperature."""
    temperature = _to_device(rows.temperature[:, None], logits)
    return (logits - logits.amax(dim=-1, keepdim=True)).div_(temperature)


def _full_mass(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Sum of exp(z) over the vocabulary: float64 [R, 1]. Ones if no row needs it.

    The best token has z = 0, so its probability is the reciprocal. softmax treats each row by
    itself, where a plain sum may be split differently when the batch is another.
    """
    if not np.any((rows.top_p < 1) & (rows.top_k == 0)):
        return logits.new_ones((len(rows), 1), dtype=torch.float64)
    best = _scaled(logits, rows).softmax(dim=-1).amax(dim=-1, keepdim=True)
    return best.double().reciprocal_()


def _rank(logits: Tensor, count: int, rows: SamplingRows) -> _Ranked:
    """The best ``count`` tokens; of equal ones at the very end of the list, any."""
    if count == logits.shape[1]:
        values, ids = logits.sort(dim=-1, stable=True)
    else:
        ids = logits.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values
        values, order = logits.gather(1, ids).sort(dim=-1, stable=True)
        ids = ids.gather(1, order)
    values = values.flip(-1)
    return _Ranked(values, _scaled(values, rows), ids.flip(-1))


def _support(best: _Ranked, mass: Tensor, rows: SamplingRows) -> _Support:
    """Which of the ranked tokens the chain keeps, and whether it keeps no others.

    ``mass`` [R, 1]: of the whole vocabulary, from :func:`_full_mass`; not used by rows with top_k.
    """
    logits, z = best.logits, best.z
    has_top_k = rows.top_k > 0
    last_rank = np.where(has_top_k, np.minimum(rows.top_k, z.shape[1]), 1) - 1
    lowest = logits.gather(1, _to_device(last_rank[:, None], z))
    lowest.masked_fill_(_to_device(~has_top_k[:, None], z), -torch.inf)
    kept = (logits >= lowest) & (z >= _log_min_p(rows, z))
    if np.any(rows.top_p < 1):
        weights = z.double().exp_().masked_fill_(logits < lowest, 0.0)
        up_to = weights.cumsum(dim=-1)
        mass = torch.where(_to_device(has_top_k[:, None], z), up_to[:, -1:], mass)
        top_p = _to_device(np.where(rows.top_p < 1, rows.top_p, np.inf)[:, None], z)
        kept &= (up_to - weights) < top_p * mass
    last = logits[:, -1]
    worst_kept = logits.masked_fill(~kept, torch.inf).amin(dim=-1)
    complete = (last == -torch.inf) | ((last < lowest[:, 0]) | _to_device(~has_top_k, z)) & (
        last < worst_kept
    )
    return _Support(kept, complete)


def _draw(best: _Ranked, mass: Tensor, rows: SamplingRows) -> tuple[Tensor, Tensor]:
    """The winning ids [R], and which rows' support was complete [R]."""
    kept, complete = _support(best, mass, rows)
    scores = (best.z + gumbel_at(_keys(rows, best.z), best.ids)).masked_fill_(~kept, -torch.inf)
    beaten = scores < scores.amax(dim=-1, keepdim=True)
    return best.ids.masked_fill(beaten, _TOP_K_LIMIT).amin(dim=-1), complete


def _log_min_p(rows: SamplingRows, like: Tensor) -> Tensor:
    with np.errstate(divide="ignore"):
        return _to_device(np.log(rows.min_p)[:, None].astype(np.float32), like)


def _keys(rows: SamplingRows, like: Tensor) -> Tensor:
    return _to_device(row_keys(rows.seeds, rows.positions), like)


def _to_device(column: npt.NDArray[Any], like: Tensor) -> Tensor:
    tensor = torch.from_numpy(column)
    if like.device.type == "cuda":
        # From memory that is not pinned a copy may wait for all that is queued.
        tensor = tensor.pin_memory()
    return tensor.to(like.device, non_blocking=True)
