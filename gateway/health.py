"""Whether the server behind the gateway is well, and what ``/server_info`` says of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.service import GatewayService


def health_fault(info: dict[str, Any]) -> str | None:
    """Why a server cannot be called healthy; None if it can."""
    away = info.get("away", [])
    if away:
        return f"{', '.join(away)} is being started again"
    idle = [replica["process"] for replica in info.get("replicas", ()) if not replica["serves"]]
    if idle:
        return f"{', '.join(idle)} does not serve"
    return None


def server_info(info: dict[str, Any], service: GatewayService) -> dict[str, Any]:
    """An ``info`` with the gateway's own facts, and the acceptance length where SGLang's load
    generator looks for it."""
    hidden = ("v", "type")
    found = {name: value for name, value in info.items() if name not in hidden}
    counters = info.get("counters", {})
    cycles, accepted = counters.get("verify_cycles", 0), counters.get("accepted_tokens", 0)
    return {
        **found,
        "gateway": {
            "pid": os.getpid(),
            "open_calls": service.num_open,
            "calls": service.num_calls,
            "draining": service.draining,
        },
        "internal_states": [{"avg_spec_accept_length": 1 + accepted / cycles if cycles else 1.0}],
    }
