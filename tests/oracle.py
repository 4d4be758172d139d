"""The outside oracle: one transformers forward pass over prompt + output judges every token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from engine_driver import Request, Result
from transformers import AutoModelForCausalLM
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pdv_mp.speculation.noise import gumbel, row_keys
from pdv_mp.wire.engine import Finish

TOLERANCE = 1e-4
"""A token is right if its score is within this of the best at its position."""

EQUAL_SHARE = 0.999
"""Outputs that must be equal token for token; the rest may part ways at near-ties."""

MASS_TOLERANCE = 1e-5
"""A token whose place in the nucleus is within this much probability of top_p or min_p may fall
on either side of it; so may one whose logit is within TOLERANCE of the last one kept."""


@dataclass
class Verdicts:
    """What the oracle found in a set of outputs."""

    tokens: int = 0
    near_ties: int = 0
    wrong: list[str] = field(default_factory=list)


class Oracle:
    """transformers' float32 verifier."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model.eval()

    def logits(self, requests: Sequence[Request], results: Sequence[Result]) -> list[torch.Tensor]:
        """Per request: float32 [len(output), vocab], row j is what decides output token j."""
        texts = [
            [*request.prompt, *result.ids]
            for request, result in zip(requests, results, strict=True)
        ]
        width = max(map(len, texts))
        batch = torch.tensor([text + [0] * (width - len(text)) for text in texts])
        with torch.inference_mode():
            logits = self.model(input_ids=batch).logits.float()
        return [
            logits[row, len(request.prompt) - 1 : len(request.prompt) - 1 + len(result.ids)]
            for row, (request, result) in enumerate(zip(requests, results, strict=True))
        ]

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """transformers' own greedy generation, cut at each request's stops and length."""
        groups: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(len(request.prompt), []).append(index)
        results = [Result() for _ in requests]
        for length, members in groups.items():
            prompts = torch.tensor([requests[i].prompt for i in members])
            most = max(requests[i].max_tokens for i in members)
            output = self.model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                min_new_tokens=most,
                max_new_tokens=most,
                eos_token_id=None,
                pad_token_id=0,
            )
            for index, ids in zip(members, output[:, length:].tolist(), strict=True):
                request = requests[index]
                ends = [i + 1 for i, token in enumerate(ids) if token in request.stop_ids]
                results[index].ids = ids[: min([request.max_tokens, *ends])]
        return results

    def judge(
        self, requests: Sequence[Request], results: Sequence[Result], batch: int = 64
    ) -> Verdicts:
        """Check tokens, stops and lengths of all outputs."""
        verdicts = Verdicts()
        order = sorted(
            range(len(requests)), key=lambda i: len(requests[i].prompt) + len(results[i].ids)
        )
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            parts = self.logits([requests[i] for i in chosen], [results[i] for i in chosen])
            for index, rows in zip(chosen, parts, strict=True):
                _judge_tokens(index, requests[index], results[index], rows, verdicts)
                _judge_end(index, requests[index], results[index], verdicts)
        return verdicts


def scores(request: Request, rows: torch.Tensor) -> torch.Tensor:
    """The numbers whose argmax is the token: logits, or processed log-probability plus noise."""
    if request.temperature == 0.0 or len(rows) == 0:
        return rows
    processed = TemperatureLogitsWarper(request.temperature)(None, rows)
    if request.top_k > 0:
        processed = TopKLogitsWarper(request.top_k)(None, processed)
    if request.top_p < 1.0:
        processed = TopPLogitsWarper(request.top_p)(None, processed)
    if request.min_p > 0.0:
        processed = MinPLogitsWarper(request.min_p)(None, processed)
    return torch.log_softmax(processed, -1) + _noise(request, rows)


def _noise(request: Request, rows: torch.Tensor) -> torch.Tensor:
    positions = len(request.prompt) + np.arange(len(rows), dtype=np.int64)
    keys = torch.from_numpy(row_keys(np.full(len(rows), request.seed, np.int64), positions))
    return gumbel(keys, rows.shape[1])


def _judge_tokens(
    index: int, request: Request, result: Result, rows: torch.Tensor, verdicts: Verdicts
) -> None:
    ids = torch.tensor(result.ids, dtype=torch.int64)
    verdicts.tokens += len(ids)
    if len(ids) == 0:
        return
    ours = scores(request, rows)
    gap = ours.max(-1).values - ours.gather(1, ids[:, None])[:, 0]
    for position in torch.nonzero(gap > 0)[:, 0].tolist():
        token = result.ids[position]
        missing = shortfall(request, rows, position, token)
        if missing <= TOLERANCE:
            verdicts.near_ties += 1
        else:
            verdicts.wrong.append(
                f"request {index}, token {position}: {token} is {missing:.2e} below the best "
                f"({request})"
            )


def shortfall(request: Request, rows: torch.Tensor, position: int, token: int) -> float:
    """By how much ``token`` misses being the choice at output ``position``.

    Infinite for a token that is surely cut off. The best is sought among the tokens that are surely
    kept: whichever way float arithmetic decides at the edges, one of those is available.
    """
    row = rows[position].double()
    if request.temperature == 0.0:
        return float(row.max() - row[token])
    row = row / request.temperature
    kept, perhaps = _edges(request, row)
    if not (kept | perhaps)[token]:
        return float("inf")
    score = row + _noise(request, rows)[position]
    return float(score[kept].max() - score[token])


def _edges(request: Request, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bool masks over the vocabulary: surely kept, and perhaps kept, by top_k, top_p and min_p."""
    masks = []
    for tolerance, mass in ((TOLERANCE, MASS_TOLERANCE), (-TOLERANCE, -MASS_TOLERANCE)):
        keep = torch.ones_like(row, dtype=torch.bool)
        above = row[None, :] + tolerance > row[:, None]
        above.fill_diagonal_(False)
        if request.top_k > 0:
            keep &= above.sum(1) < request.top_k
        probabilities = torch.softmax(row.masked_fill(~keep, float("-inf")), -1)
        if request.top_p < 1.0:
            mass_above = (above * probabilities).sum(1)
            keep &= mass_above + mass < request.top_p
        if request.min_p > 0.0:
            keep &= probabilities / probabilities.max() >= request.min_p + mass
        keep[row.argmax()] = True
        masks.append(keep)
    return masks[0], masks[1]


def _judge_end(index: int, request: Request, result: Result, verdicts: Verdicts) -> None:
    stops = [place for place, token in enumerate(result.ids) if token in request.stop_ids]
    if stops:
        right = result.finish is Finish.STOP and stops[0] == len(result.ids) - 1
        right = right and result.stop_id == result.ids[-1]
    else:
        right = result.finish is Finish.LENGTH and len(result.ids) == request.max_tokens
    if not right:
        verdicts.wrong.append(f"request {index} ends wrongly: {result.finish!r} {result.ids}")


@dataclass(frozen=True)
class Difference:
    """Two outputs of one request part ways at output token ``place``; the worse of the two tokens
    misses being the choice there by ``gap``."""

    index: int
    place: int
    gap: float
    request: Request

    @property
    def is_near_tie(self) -> bool:
        """Whether float arithmetic may decide either way."""
        return self.gap <= TOLERANCE

    def __str__(self) -> str:
        return (
            f"request {self.index} differs from token {self.place} on, {self.gap:.2e} from a tie: "
            f"{self.request}"
        )


def compare(
    oracle: Oracle,
    requests: Sequence[Request],
    one: Sequence[Result],
    other: Sequence[Result],
) -> list[Difference]:
    """The outputs that differ, each with the scores' gap at its first difference."""
    differences = []
    for index, (request, left, right) in enumerate(zip(requests, one, other, strict=True)):
        if left.ids == right.ids:
            continue
        place = next(i for i, (a, b) in enumerate(zip(left.ids, right.ids, strict=False)) if a != b)
        row = oracle.logits([request], [left])[0]
        gap = max(shortfall(request, row, place, ids[place]) for ids in (left.ids, right.ids))
        differences.append(Difference(index, place, gap, request))
    return differences


def check_lossless(
    label: str,
    oracle: Oracle,
    requests: Sequence[Request],
    results: Sequence[Result],
    plain: Sequence[Result],
    report_line: Callable[[str], None],
    least_acceptance: float = 0.1,
) -> None:
    """Every token is the verifier's own; the outputs equal plain decoding's and, where greedy,
    transformers' ``generate``, but for a share that parts ways at a near-tie."""
    verdicts = oracle.judge(requests, results)
    assert verdicts.wrong == []
    greedy = [i for i, request in enumerate(requests) if request.temperature == 0]
    asked, ours = [requests[i] for i in greedy], [results[i] for i in greedy]
    unlike_plain = compare(oracle, requests, results, plain)
    unlike_generate = compare(oracle, asked, ours, oracle.generate(asked))
    for name, differences, count in (
        ("plain decoding", unlike_plain, len(requests)),
        ("generate()", unlike_generate, len(greedy)),
    ):
        for difference in differences:
            report_line(f"{label}, against {name}: {difference}")
        assert all(difference.is_near_tie for difference in differences)
        assert len(differences) <= (1 - EQUAL_SHARE) * count
    drafted = sum(result.drafted for result in results)
    accepted = sum(result.accepted for result in results)
    assert least_acceptance < accepted / drafted < 0.95, "some drafts are kept, and some are not"
    finishes = {result.finish for result in results}
    assert finishes <= {Finish.STOP, Finish.LENGTH}
    assert len(requests) < 300 or len(finishes) == 2, "some must stop, others reach their length"
    report_line(
        f"{label}: {len(requests)} requests, {verdicts.tokens} tokens all the verifier's own "
        f"({verdicts.near_ties} near-ties); {len(unlike_plain)} outputs differ from plain "
        f"decoding, {len(unlike_generate)} of {len(greedy)} greedy ones from generate(); "
        f"acceptance {accepted / drafted:.2f}"
    )
