"""Who goes down with whom in each topology."""

from __future__ import annotations

import dataclasses

import pytest

from launcher.groups import RestartGroups
from pdv_mp.topology import BASELINE, PD, PDV, UNIFIED, Topology

TWICE = dataclasses.replace(PDV, replicas=2, tokenizers=2)
EVERYBODY = ("prefill-0", "draft-0", "verify-0", "prefill-1", "draft-1", "verify-1")


@pytest.mark.parametrize(
    ("row", "name", "fallen"),
    [
        (UNIFIED, "worker-0", ("worker-0",)),
        (BASELINE, "worker-2", ("worker-2",)),
        (PD, "prefill-0", ("prefill-0",)),
        (PD, "decode-0", ("decode-0", "prefill-0")),
        (TWICE, "draft-1", ("draft-1",)),
        (TWICE, "verify-1", ("verify-1", "prefill-1", "draft-1")),
        (TWICE, "pools", ("pools", *EVERYBODY)),
        (TWICE, "tokenizer-1", ("tokenizer-1",)),
        (TWICE, "front", ("front", "pools", *EVERYBODY, "tokenizer-0", "tokenizer-1")),
    ],
)
def test_what_starts_anew_with_a_process(row: Topology, name: str, fallen: tuple[str, ...]) -> None:
    assert RestartGroups(row).falls_with(name) == fallen


@pytest.mark.parametrize(
    ("row", "name", "notices"),
    [
        (UNIFIED, "worker-0", [("front", "worker-0")]),
        (TWICE, "draft-1", [("front", "draft-1"), ("verify-1", "draft-1")]),
        (TWICE, "verify-0", [("front", "verify-0")]),
        (TWICE, "tokenizer-1", [("front", "tokenizer-1")]),
        (TWICE, "pools", [("front", name) for name in ("pools", "verify-0", "verify-1")]),
        (
            BASELINE,
            "pools",
            [("front", name) for name in ("pools", *(f"worker-{number}" for number in range(4)))],
        ),
        (UNIFIED, "gateway", [("front", "gateway")]),
        (UNIFIED, "metrics", [("front", "metrics")]),
    ],
)
def test_who_is_told_of_whom(row: Topology, name: str, notices: list[tuple[str, str]]) -> None:
    assert list(RestartGroups(row).notices(name)) == notices
