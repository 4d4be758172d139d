"""How many requests of which length overload a server as much as the sources did."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection
from dataclasses import dataclass

OVERLOAD = 5.5
"""Tokens offered over tokens that can be generated in the window, as in the sources at 128."""

REQUESTS_PER_SLOT = 1.5
"""The sources offered 192 requests where 128 were admitted."""


class OverloadError(ValueError):
    """No load of this kind overloads the server; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Overload:
    """A load: ``requests`` of ``tokens`` each are expected in the first half of the window.

    ``window``: seconds. ``capacity``: tokens/s. ``first_tokens``: how far the first request is
    expected to get by the window's end where all share the fastest server; if that is not below
    ``tokens``, some complete even there.
    """

    window: float
    slots: int
    capacity: float
    requests: float
    tokens: int
    first_tokens: float

    @property
    def arriving(self) -> float:
        """Seconds in which requests arrive: the first half of the window."""
        return self.window / 2

    @property
    def rate(self) -> float:
        """Requests/s while they arrive."""
        return self.requests / self.arriving

    @property
    def overload(self) -> float:
        """Tokens offered over those that can be generated in the window."""
        return self.requests * self.tokens / (self.capacity * self.window)


def make_overload(
    *,
    window: float,
    slots: int,
    capacities: Collection[float],
    alone: float,
    longest: int,
    overload: float,
) -> Overload:
    """The load that overloads servers by that factor with one and a half requests for each of their
    ``slots``; with more, shorter ones where ``longest``, the most tokens of an answer, is less than
    that takes.

    ``capacities``: tokens/s of each server; what is overloaded is their geometric mean. ``alone``:
    of a request without others. Raises OverloadError if answers would have less than two tokens.
    """
    capacity = math.exp(statistics.fmean(math.log(rate) for rate in capacities))
    offered = overload * capacity * window
    requests = max(slots * REQUESTS_PER_SLOT, offered / longest)
    tokens = min(longest, round(offered / requests))
    if tokens < 2:
        raise OverloadError(
            f"{slots} requests at once leave {offered / requests:.1f} tokens for each in a window "
            f"of {window:g} s; choose a longer --window or a lower --concurrency"
        )
    first = first_request(window, slots, max(capacities), alone, requests)
    return Overload(window, slots, capacity, requests, tokens, first)


def first_request(
    window: float, slots: int, capacity: float, alone: float, requests: float
) -> float:
    """Tokens that the first request has at the window's end where all that are admitted share the
    server evenly: processor sharing.

    It runs at ``alone`` until capacity / alone requests are there, then at its share of
    ``capacity`` while requests arrive, until all slots are taken or no more arrive.
    """
    half = window / 2
    rate = requests / half
    alone = min(alone, capacity)
    free = min(half, capacity / alone / rate)
    full = max(free, min(half, slots / rate))
    share = capacity / max(1.0, rate * full)
    shared = capacity / rate * math.log(full / free) if full > free else 0.0
    return free * alone + shared + min(alone, share) * (window - full)
