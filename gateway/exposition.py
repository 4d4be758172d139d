"""The seam to the Prometheus text, which is made from the server's ``info``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping


def exposition(info: Mapping[str, object]) -> str:
    """The text of ``GET /metrics``: that of ``pdv_mp.metrics.exposition.exposition``."""
    module = importlib.import_module("pdv_mp.metrics.exposition")
    text: str = module.exposition(info)
    return text
