"""A slow reader and a stopped one, next to clients that read: these get what they always get."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hostile.attacked import Attacked

from bench.slow_reader import REQUESTS_OF_OTHERS, Load, Window, compare, measure

PAIRS = 4
CLIENTS = 4
TOKENS = 64


def longest_draft(attacked: Attacked) -> int:
    found: int = attacked.info()["configuration"]["speculation"]["max_speculative_tokens"]
    return found


def check_not_held_up(window: Window, num_speculative_tokens: int) -> None:
    """No token waited for others in the front: none was merged, and no last message queued."""
    assert 1 <= window.most_ids <= num_speculative_tokens + 1
    for timeline in window.timelines:
        assert "front.outbox" not in timeline["states"]


def test_nobody_else_notices_readers_that_do_not_keep_up(
    attacked: Attacked, report_line: Callable[[str], None]
) -> None:
    length = longest_draft(attacked)
    pairs = measure(attacked.server.ipc, PAIRS, CLIENTS, TOKENS)
    assert len(pairs) == PAIRS
    for without, with_ in pairs:
        assert (without.offended, with_.offended) == (False, True)
        for window in (without, with_):
            assert len(window.ms_per_token) == CLIENTS
            check_not_held_up(window, length)
    report_line(
        "slow readers: time per token of the others with them over that without them: "
        f"{compare(pairs)}"
    )


def test_what_a_stopped_reader_does_not_read_is_merged(attacked: Attacked) -> None:
    """So the windows above do have something waiting in the front."""
    stopped = attacked.client(attacked.server.ipc, queue=1)
    for number in range(REQUESTS_OF_OTHERS):
        stopped.send(
            "generate",
            id=str(number),
            prompt_ids=[1 + number],
            max_tokens=4 * TOKENS,
            ignore_eos=True,
            logprobs=20,
        )
    with Load(attacked.server.ipc, CLIENTS, TOKENS) as load:
        load.window(offended=True)  # waits until nothing is open
    received = []
    while [item["type"] for item in received].count("done") < REQUESTS_OF_OTHERS:
        received.append(stopped.receive())
    most = max(len(item["ids"]) for item in received if item["type"] == "tokens")
    assert most > longest_draft(attacked) + 1


def test_the_interval_holds_the_ratio() -> None:
    def window(offended: bool, value: float) -> Window:
        return Window(offended, [value, value + 0.1, value - 0.1])

    pairs = [(window(False, 1 + turn / 100), window(True, 2 + turn / 50)) for turn in range(20)]
    ratio = compare(pairs)
    assert ratio.value == pytest.approx(2)
    assert ratio.low <= 2 <= ratio.high < 2.2
