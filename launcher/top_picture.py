"""Draws ``pdv-top`` over a busy server: ``python -m launcher.top_picture docs/pdv-top.svg``."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any

from launcher.top_command import main as top
from pdv_mp import LLM, Client, SamplingParams

TOPOLOGY = "pdv"
OPTIONS: dict[str, Any] = {"num_speculative_tokens": 4, "metrics_port": 0}
CLIENTS = 6
SECONDS = "5"


def main(arguments: Sequence[str]) -> int:
    """Starts a server of the shipped pair, keeps it busy while it is watched, and stops it. Returns
    the exit status of ``pdv-top``."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m launcher.top_picture FILE.svg\n")
        return 2
    with LLM(topology=TOPOLOGY, **OPTIONS) as llm:
        busy, enough = threading.Event(), threading.Event()
        load = threading.Thread(target=_load, args=(llm.ipc, busy, enough))
        load.start()
        try:
            busy.wait()
            watch = ["--connect", llm.endpoint, "--once", "--interval", SECONDS]
            return top([*watch, "--svg", arguments[0]])
        finally:
            enough.set()
            load.join()


def _load(endpoint: str, busy: threading.Event, enough: threading.Event) -> None:
    """Keeps some requests open until it is enough; ``busy`` is set when the first have ended."""
    params = SamplingParams(max_tokens=96, temperature=0.7, ignore_eos=True)
    with Client(endpoint) as client:
        for number in range(CLIENTS):
            client.submit(f"def part_{number}(items):\n", params)
        for number, _ in enumerate(client.results()):
            if enough.is_set():
                break
            if number >= CLIENTS:
                busy.set()
            client.submit(f"class Part{number}:\n", params)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
