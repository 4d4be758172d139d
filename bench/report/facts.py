"""The machine and the program of a run in a few words, from ``run.environment``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def commit(environment: Mapping[str, Any]) -> str:
    """The commit that was measured, and whether files differed from it."""
    found = environment.get("commit")
    if not found:
        return "unknown"
    text = str(found["id"])[:9]
    return f"{text} with changes" if found.get("dirty") else text


def machine(environment: Mapping[str, Any]) -> str:
    """Processor, cores and GPUs."""
    found = environment.get("machine") or {}
    usable = found.get("usable")
    parts = [str(found.get("cpu") or "unknown processor")]
    if usable:
        parts.append(f"{usable} usable {'thread' if usable == 1 else 'threads'}")
    names = [str(gpu.get("name")) for gpu in found.get("gpus") or ()]
    kinds = [f"{names.count(name)} × {name}" for name in dict.fromkeys(names)]
    return ", ".join([*parts, *(kinds or ["no GPU"])])
