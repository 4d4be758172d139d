"""pdv_mp: speculative decoding in separate processes, built to be measured.

``LLM`` serves models from a script, ``Client`` and ``AsyncClient`` talk to a running server, and
``SamplingParams`` says what a request wants. They are imported on first use, so that importing the
package stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdv_mp.client.async_client import AsyncClient
    from pdv_mp.client.client import Client, Completion, TokenLogprob
    from pdv_mp.client.llm import LLM
    from pdv_mp.sampling_params import SamplingParams

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "AsyncClient",
    "Client",
    "Completion",
    "SamplingParams",
    "TokenLogprob",
    "__version__",
]

_HOMES = {
    "LLM": "pdv_mp.client.llm",
    "AsyncClient": "pdv_mp.client.async_client",
    "Client": "pdv_mp.client.client",
    "Completion": "pdv_mp.client.client",
    "SamplingParams": "pdv_mp.sampling_params",
    "TokenLogprob": "pdv_mp.client.client",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pdv_mp' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
