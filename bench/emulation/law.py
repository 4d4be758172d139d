"""The law of a cycle, by which rates are predicted before anything is measured.

C requests are decoded in g groups. A group's cycle drafts k tokens for each of its n = C / g
requests, in k steps, verifies them in one, and commits E tokens of each request on average:

    T(C)  = g [k T_d(n) + T_v(n, k + 1) + s(n)] + sum over edges of m (h0 + h1 n)
    rate  = C E(a, k) / (T(C) + P(C)),   E(a, k) = (1 - a^(k + 1)) / (1 - a)

T_d and T_v are steps of draft and verifier, s(n) = s0 + s1 n what the host does in a cycle besides,
m the messages that a cycle waits for over an edge, h0 + h1 n what one takes. P is what prompts take
of the same device per cycle: with answers of L tokens, C E / L prompts begin in each.

Where steps of different processes overlap, and prompts have a process of their own, clients go from
one to the other and back. N_p are at prompts, one of which takes P_1, and the others decode:

    R = R_p + L / E T(C - N_p),   R_p = P_1 (1 + N_p (C - 1) / C),   N_p = C R_p / R
    rate = L C / R

which is mean value analysis (Reiser and Lavenberg, Journal of the ACM 27, 1980) with Schweitzer's
approximation of how many a prompt finds before it.

With the draft on a device of its own and two groups, one group is drafted while the other is
verified, and a cycle of both takes

    T(C) = 2 max(k T_d(n) + sum of m (h0 + h1 n), T_v(n, k + 1) + s(n))

With the draft on a device of its own, one group and drafts made ahead, the draft goes on while its
proposal is verified, as if all of it were kept and the token after it guessed. That holds for all n
requests with h = a^((k + 1) n), and else they are drafted after all:

    T(C) = max(T_v(n, k + 1) + s(n), h (k + 1) T_d(n)) + (1 - h) k T_d(n) + sum of m (h0 + h1 n)

Two replicas on two devices are two servers with half of the requests each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pdv_mp.emulation.cost_table import CostTable

PREFILLS_APART = ("pd", "pdv")
ROUNDS = 40
"""After which a fixed point is found."""

MESSAGES = {"unified": 0, "baseline": 0, "pd": 0, "pdv": 2}
"""Messages that a cycle waits for: verify>draft and draft>verify. Prompts of pd and pdv are handed
on beside the cycles, once for each request."""


@dataclass(frozen=True, slots=True)
class HostCosts:
    """Microseconds on the host: ``s0 + s1 n`` of a cycle of n requests, ``h0 + h1 n`` of a message
    that it waits for."""

    s0: float
    s1: float
    h0: float
    h1: float

    def cycle(self, requests: float) -> float:
        """Of a cycle."""
        return self.s0 + self.s1 * requests

    def message(self, requests: float) -> float:
        """Of a message."""
        return self.h0 + self.h1 * requests


@dataclass(frozen=True, slots=True)
class Work:
    """What clients ask for: tokens of a prompt and of an answer, means."""

    prompt: float
    answer: float

    @property
    def context(self) -> float:
        """Tokens in the cache of a request, on average."""
        return self.prompt + self.answer / 2


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Who computes where: a topology by name, ``groups``, and whether the draft has a device of its
    own, and there goes ``ahead``. ``replicas`` have a device each. ``extra_us``: a delay that is
    added to each message."""

    topology: str
    groups: int = 1
    own_draft_device: bool = False
    replicas: int = 1
    extra_us: float = 0.0
    ahead: bool = False

    @property
    def messages(self) -> int:
        """That a cycle waits for."""
        return MESSAGES[self.topology]


def expected_tokens(acceptance: float, k: int) -> float:
    """E(a, k): tokens that a cycle commits of a request."""
    return float(sum(acceptance**place for place in range(k + 1)))


@dataclass(frozen=True, slots=True)
class Prediction:
    """``rate``: output tokens/s. ``cycle_us``: of all groups once, prompts not counted.
    ``device_us``: the part of it in which the verifier's device computes; ``messages_us``: what it
    waits for messages."""

    rate: float
    cycle_us: float
    device_us: float
    messages_us: float


def predict(
    table: CostTable,
    host: HostCosts,
    where: Arrangement,
    concurrency: int,
    k: int,
    work: Work,
) -> Prediction:
    """The law for one server, or for ``replicas`` of it with an equal share of the requests."""
    here = concurrency / where.replicas
    found = _cycle(table, host, where, here, k, work)
    tokens = here * expected_tokens(table.acceptance, k)
    if table.overlap and where.topology in PREFILLS_APART:
        rate = _beside(table, host, where, here, k, work)
    else:
        prompts = _prompts_us(table, tokens / work.answer, work.prompt)
        rate = 1e6 * tokens / (found.cycle_us + prompts)
    return replace(found, rate=where.replicas * rate)


def _cycle(
    table: CostTable, host: HostCosts, where: Arrangement, here: float, k: int, work: Work
) -> Prediction:
    """A cycle of ``here`` requests, as if there were no prompts."""
    groups = min(where.groups, max(1, int(here)))
    n = here / groups
    drafts = table.draft_us(k, n, work.context)
    verifies = table.step_us("verify", n, k + 1, work.context)
    count = where.messages if k else 0
    messages = count * (host.message(n) + where.extra_us)
    if where.own_draft_device and groups > 1 and k:
        device = groups * verifies
        cycle = groups * max(drafts + messages, verifies + host.cycle(n))
    elif where.own_draft_device and where.ahead and k:
        device = verifies
        hit = table.acceptance ** ((k + 1) * n)
        guessed = hit * drafts * (k + 1) / k
        cycle = max(verifies + host.cycle(n), guessed) + (1 - hit) * drafts + messages
    else:
        device = groups * (drafts + verifies)
        cycle = device + groups * host.cycle(n) + messages
    rate = 1e6 * here * expected_tokens(table.acceptance, k) / cycle
    return Prediction(rate, cycle, device, messages)


def _beside(
    table: CostTable, host: HostCosts, where: Arrangement, here: float, k: int, work: Work
) -> float:
    """Output tokens/s with prompts in a process of their own, beside the cycles."""
    one = _prompts_us(table, 1.0, work.prompt)
    cycles = work.answer / expected_tokens(table.acceptance, k)
    waiting = 0.0
    for _ in range(ROUNDS):
        prompt = one * (1 + waiting * (here - 1) / here)
        decoding = max(1.0, here - waiting)
        took = prompt + cycles * _cycle(table, host, where, decoding, k, work).cycle_us
        waiting += (here * prompt / took - waiting) / 2
    return 1e6 * work.answer * here / took


def _prompts_us(table: CostTable, prompts: float, tokens: float) -> float:
    """Of so many prompts per cycle; fewer than one begin in some cycles only."""
    if tokens <= 0:
        return 0.0
    steps = [step for step in ("prefill", "prefill_draft") if step in table.steps]
    together = max(1.0, prompts)
    cost = sum(table.step_us(step, together, tokens, 0) for step in steps)
    return min(1.0, prompts) * cost


def best_length(
    table: CostTable,
    host: HostCosts,
    where: Arrangement,
    concurrency: int,
    work: Work,
    most: int = 8,
) -> tuple[int, Prediction]:
    """The draft length with the highest predicted rate, 0 included."""
    found = [(k, predict(table, host, where, concurrency, k, work)) for k in range(most + 1)]
    return max(found, key=lambda item: item[1].rate)


def fit_line(
    sizes: Sequence[float], times: Sequence[float], scales: Sequence[float]
) -> tuple[float, float]:
    """Intercept and slope of times over batch sizes, neither negative, by least squares of
    deviations relative to ``scales``: with the times themselves small batches count as much as
    large ones."""
    if len(sizes) < 2:
        return (max(0.0, times[0]), 0.0) if times else (0.0, 0.0)
    weights = 1 / np.maximum(np.asarray(scales, np.float64), 1e-9)
    columns = np.stack([np.ones(len(sizes)), np.asarray(sizes, np.float64)], axis=1)
    from scipy.optimize import nnls

    found, _ = nnls(columns * weights[:, None], np.asarray(times) * weights)
    return float(found[0]), float(found[1])
