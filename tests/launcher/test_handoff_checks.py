"""Ways of handing work over that exclude each other are refused before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.handoff_checks import check_handoff
from pdv_mp.config import ConfigError, EngineConfig
from pdv_mp.topology import ROWS


def check(**options: Any) -> None:
    config = EngineConfig.from_options(model="x", draft_model="y", device="cpu", **options)
    check_handoff(config, ROWS["pdv"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hybrid": True, "draft_ahead": True}, "--hybrid and --draft-ahead do not go together"),
        ({"hybrid": True, "kv_handoff": "copy"}, "leave out --kv-handoff copy"),
        ({"hybrid": True, "kv_handoff": "handle"}, "leave out --kv-handoff handle"),
    ],
)
def test_a_hybrid_needs_one_draft_at_a_time_and_one_cache(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check(**options)
    for name in options:
        check(**{name: options[name]})
