"""Streams one completion, then sends several prompts at once:

    python examples/python/blocking_client.py tcp://127.0.0.1:5555

The token of a server that asks for one is in the environment variable PDV_TOKEN.
"""

from __future__ import annotations

import os
import sys

from pdv_mp import Client, SamplingParams
from pdv_mp.client.client import DEFAULT_ENDPOINT


def main(endpoint: str = DEFAULT_ENDPOINT) -> None:
    with Client(endpoint, token=os.environ.get("PDV_TOKEN")) as client:
        welcome = client.hello()
        print(f"[{welcome['model']} on {welcome['topology']}]")

        stream = client.generate("def fibonacci(n):", max_tokens=48, temperature=0.7, seed=7)
        for chunk in stream:
            print(chunk.text, end="", flush=True)
        print(f"\n[{stream.result().speculation}]")

        params = SamplingParams(max_tokens=16, stop=("\n\n",))
        prompts = {client.submit(text, params): text for text in ("import os\n", "class Stack:\n")}
        for completion in client.results():  # in the order in which they end
            print(f"{prompts[completion.id]!r} -> {completion.text!r}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
