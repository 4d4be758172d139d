"""Streams several completions at once in one event loop:

    python examples/python/asyncio_client.py tcp://127.0.0.1:5555

The token of a server that asks for one is in the environment variable PDV_TOKEN.
"""

from __future__ import annotations

import asyncio
import os
import sys

from pdv_mp import AsyncClient
from pdv_mp.client.client import DEFAULT_ENDPOINT

PROMPTS = ("def merge_sort(items):", "class Queue:", "for line in file:")


async def complete(client: AsyncClient, prompt: str) -> str:
    """One line that says what follows a prompt, and in how many pieces it came."""
    pieces = []
    async with await client.generate(prompt, max_tokens=32, stop=["\n\n"]) as stream:
        async for chunk in stream:
            pieces.append(chunk.text)
    return f"{prompt!r} -> {''.join(pieces)!r} ({len(pieces)} pieces)"


async def main(endpoint: str = DEFAULT_ENDPOINT) -> None:
    async with AsyncClient(endpoint, token=os.environ.get("PDV_TOKEN")) as client:
        for finished in asyncio.as_completed([complete(client, prompt) for prompt in PROMPTS]):
            print(await finished)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2]))
