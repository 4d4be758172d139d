"""Cost tables for tests: every step takes the same time."""

from __future__ import annotations

from typing import Any

STEPS = ("prefill", "verify", "prefill_draft", "draft")


def flat_table(microseconds: float = 200.0, **changed: Any) -> dict[str, Any]:
    """A whole table, as a file has it."""
    sizes = {
        "name": "flat",
        "dtype": "bfloat16",
        "layers": 2,
        "heads": 2,
        "kv_heads": 1,
        "head_dim": 64,
        "context": 1024,
        "weight_bytes": 1000,
    }
    step: dict[str, Any] = {
        "sequences": [1],
        "rows": [1],
        "context": [0],
        "microseconds": [[[microseconds]]],
    }
    return {
        "emulated_device": 1,
        "name": "flat",
        "origin": "made for a test",
        "acceptance": 0.6,
        "memory_bytes": 10**9,
        "launch_us": 5,
        "synchronize_us": 5,
        "time_slice_us": 100,
        "overlap": False,
        "models": {"target": dict(sizes), "draft": {**sizes, "name": "flat-draft"}},
        "steps": {name: dict(step) for name in STEPS},
        **changed,
    }
