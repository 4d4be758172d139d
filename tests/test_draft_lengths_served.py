"""Draft lengths chosen, and drafts looked up, by servers of real processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import tiny_arguments
from server_load import Message, load, outputs, random_requests
from server_process import ServerProcess
from tiny_model import TinyPair

Start = Callable[..., ServerProcess]

NGRAM = ("--draft-model", "none", "--speculative-config", '{"method": "ngram"}')
AUTO = ("--num-speculative-tokens", "auto")


@pytest.fixture(scope="module")
def requests() -> list[Message]:
    return random_requests(24, seed=9)


@pytest.fixture(scope="module")
def wanted(
    tiny_pair: TinyPair, run_place: object, requests: list[Message]
) -> list[tuple[Any, ...]]:
    plain = [{**fields, "speculate": False} for fields in requests]
    with ServerProcess(*tiny_arguments(tiny_pair)) as server:
        answers = outputs(server.wait_ready(), plain)
        server.stop()
    return answers


def speculation(server: ServerProcess) -> dict[str, Any]:
    with load(server) as client:
        found: dict[str, Any] = client.info()["speculation"]
    return found


@pytest.mark.parametrize(
    ("topology", "options", "controller"),
    [
        ("pdv", (), "goodput"),
        pytest.param(
            *("baseline", ("--draft-controller", "feedback"), "feedback"), marks=pytest.mark.slow
        ),
    ],
)
def test_a_server_that_chooses_gives_the_same_tokens(
    topology: str,
    options: tuple[str, ...],
    controller: str,
    start_server: Start,
    requests: list[Message],
    wanted: list[tuple[Any, ...]],
) -> None:
    server = start_server("--topology", topology, "--check-invariants", *AUTO, *options)
    assert outputs(server, requests) == wanted
    found = speculation(server)
    assert [entry["name"] for entry in found["controllers"]] == [controller] * (
        4 if topology == "baseline" else 1
    )
    assert sum(found["lengths"].values()) > 20


def test_ngram_drafts_need_no_draft_process(
    start_server: Start, requests: list[Message], wanted: list[tuple[Any, ...]]
) -> None:
    server = start_server("--topology", "pdv", "--check-invariants", *AUTO, *NGRAM)
    assert set(server.pids) == {
        *("launcher", "front", "pools", "tokenizer-0", "prefill-0", "verify-0")
    }
    assert outputs(server, requests) == wanted
    assert speculation(server)["method"] == "ngram"
    said = " ".join(server.stop().messages)
    assert "topology 'pdv' is served without its draft process: n-gram drafts" in said
