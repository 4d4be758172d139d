"""What lies between the time that requests take on a server and the least that they could take.

A server is asked for some requests that begin together, and says of each of its batches what it
was and how long it took. So the time has four parts, which add up:

- *bound*: the least time of the work, all requests together until the end
  (:mod:`bench.roofline.bounds`), at the draft length that suits it best with the acceptance found;
- *batches*: how much more the batches that there were take at least. Requests do not end together,
  and the last ones have the machine for themselves; lengths are chosen before they are known to be
  the best; prompts are computed in chunks;
- *kernels*: by how much the steps missed what they take at least;
- *between*: the time in which no step was computed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.roofline.bounds import (
    CellWork,
    acceptance_of,
    best_length,
    cell_bound,
    prefill_seconds,
    step_seconds,
)
from bench.roofline.models import ModelCost
from bench.roofline.rates import Rates
from pdv_mp import LLM
from pdv_mp.client.client import Client

MOST_BATCHES = 256
"""That an inquiry gives."""

PARTS = ("bound", "batches", "kernels", "between")


class AccountError(Exception):
    """One sentence for the user."""


@dataclass(frozen=True, slots=True)
class Account:
    """Seconds of requests that began together, in parts; ``acceptance``: of their drafts."""

    concurrency: int
    bound: float
    batches: float
    kernels: float
    between: float
    acceptance: float

    @property
    def seconds(self) -> float:
        """All parts."""
        return self.bound + self.batches + self.kernels + self.between


@dataclass(frozen=True, slots=True)
class Accountant:
    """Knows what steps of a pair take at least."""

    rates: Rates
    verifier: ModelCost
    draft: ModelCost | None

    def account(
        self, batches: Sequence[Mapping[str, Any]], work: CellWork, seconds: float
    ) -> Account:
        """``batches``: records of ``info`` of all batches of this work, which took ``seconds``."""
        context = work.prompt + work.output / 2
        least = sum(self._least(batch, context) for batch in batches)
        computed = sum(batch["ended_ns"] - batch["started_ns"] for batch in batches) / 1e9
        acceptance = _acceptance(batches)
        chosen = work
        if self.draft is not None:
            chosen = best_length(self.rates, self.verifier, self.draft, work, acceptance)
        rate = cell_bound(self.rates, self.verifier, self.draft, chosen)
        bound = work.batch * work.output / rate
        return Account(
            concurrency=round(work.batch),
            bound=bound,
            batches=least - bound,
            kernels=computed - least,
            between=seconds - computed,
            acceptance=acceptance,
        )

    def _least(self, batch: Mapping[str, Any], context: float) -> float:
        """Seconds of one batch."""
        sequences = float(batch["sequences"])
        each = float(batch["rows"]) / sequences
        if batch["stage"] == "verify":
            return step_seconds(self.rates, self.verifier, sequences, each, context)
        if batch["stage"] == "prefill":
            both = prefill_seconds(self.rates, self.verifier, sequences, each)
            if self.draft is not None:
                both += prefill_seconds(self.rates, self.draft, sequences, each, head_tokens=0)
            return both
        if self.draft is None:
            raise AccountError("a server without a draft model has drafted")
        return each * step_seconds(self.rates, self.draft, sequences, 1, context)


def _acceptance(batches: Sequence[Mapping[str, Any]]) -> float:
    """Of the drafts that these batches verified."""
    verified = [b for b in batches if b["stage"] == "verify" and b["rows"] > b["sequences"]]
    cycles = sum(batch["sequences"] for batch in verified)
    if not cycles:
        return 0.0
    drafted = sum(batch["rows"] - batch["sequences"] for batch in verified)
    kept = drafted - sum(batch["discarded"] for batch in verified)
    return acceptance_of(1 + kept / cycles, drafted / cycles)


def measure_account(
    server: LLM, accountant: Accountant, prompts: Sequence[Sequence[int]], output: int
) -> Account:
    """Of these prompts at once, ``output`` tokens each. Raises AccountError where the server had
    more batches than it tells of."""
    with Client(server.ipc) as client:
        began = time.monotonic_ns()
        for prompt in prompts:
            client.submit(list(prompt), max_tokens=output, ignore_eos=True)
        for _ in client.results():
            pass
        seconds = (time.monotonic_ns() - began) / 1e9
        records = client.info(batches=MOST_BATCHES)["batches"]
    batches = [record for record in records if record["picked_ns"] >= began]
    if len(batches) == len(records) == MOST_BATCHES:
        raise AccountError(
            f"the requests took more than the {MOST_BATCHES} batches that a server tells of; give "
            "smaller --output-tokens"
        )
    work = CellWork(len(prompts), len(prompts[0]), output)
    return accountant.account(batches, work, seconds)


def account_table(accounts: Sequence[Account]) -> str:
    """As Markdown: each concurrency once, its parts as shares of all time of its rounds."""
    lines = ["| C | rounds | seconds | acceptance |", "| --- | --- | --- | --- |"]
    lines[0] += "".join(f" {name} |" for name in PARTS)
    lines[1] += " --- |" * len(PARTS)
    for concurrency in dict.fromkeys(account.concurrency for account in accounts):
        mine = [account for account in accounts if account.concurrency == concurrency]
        total = sum(account.seconds for account in mine)
        acceptance = sum(account.acceptance for account in mine) / len(mine)
        shares = [sum(getattr(account, name) for account in mine) / total for name in PARTS]
        cells = [str(concurrency), str(len(mine)), f"{total:.2f}", f"{acceptance:.2f}"]
        lines.append(f"| {' | '.join([*cells, *(f'{share:.0%}' for share in shares)])} |")
    return "\n".join(lines)
