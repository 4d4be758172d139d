"""Any server with OpenAI's completions endpoint, such as ``http://127.0.0.1:8000/v1``.

Prompts are sent as token ids. ``ignore_eos`` and ``return_token_ids`` are vLLM's names, which
several servers know; one that does not say its tokens' ids is counted by its ``usage``.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .peer import Answer, Generate, Peer, Setting

SECONDS = 600.0
"""A request may take so long."""


def load(setting: Setting) -> Generate:
    """Asks for the model's name."""
    base = setting.url.rstrip("/")
    model = _asked(f"{base}/models", None)["data"][0]["id"]

    def one(prompt: Sequence[int], tokens: int) -> dict[str, Any]:
        return _asked(
            f"{base}/completions",
            {
                "model": model,
                "prompt": list(prompt),
                "max_tokens": tokens,
                "temperature": 0,
                "ignore_eos": True,
                "return_token_ids": True,
            },
        )

    pool = ThreadPoolExecutor(setting.concurrency)

    def generate(prompts: Sequence[Sequence[int]], tokens: int) -> Answer:
        found = list(pool.map(one, prompts, [tokens] * len(prompts)))
        ids = [answer["choices"][0].get("token_ids") for answer in found]
        if all(ids):
            return Answer(ids)
        return Answer([], tokens=sum(answer["usage"]["completion_tokens"] for answer in found))

    return generate


def _asked(url: str, body: dict[str, Any] | None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        text = error.read(500).decode("utf-8", "replace")
        raise RuntimeError(f"{url} answered {error.code}: {text}") from error


PEER = Peer(name="url", package="", modes=("server",), load=load, needs_url=True)
