"""The loop of every program: JSON lines over its standard input and output.

    <- {"setting": {...}}                   -> {"ready": true, "version": "1.2"}
    <- {"prompts": [[...]], "tokens": 64}   -> {"ids": [[...]], "seconds": 0.5, ...}
                                            -> {"error": "one sentence"}, and the program ends

Engines print what they like: standard output becomes standard error before one is imported, and the
answers go to a copy of the pipe.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
import traceback
from typing import IO, Any

from .peer import Generate, Peer, as_setting


def serve(peer: Peer) -> int:
    """Load on the first line, generate on the others, end with the pipe. 1 after an error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        generate = peer.load(as_setting(json.loads(sys.stdin.readline())["setting"]))
        _say(answers, {"ready": True, "version": _version(peer)})
        for line in sys.stdin:
            _say(answers, _generated(generate, json.loads(line)))
    except BaseException as error:  # noqa: BLE001 - engines raise and exit as they like; it is told
        traceback.print_exc()
        _say(answers, {"error": _sentence(error)})
        return 1
    return 0


def _generated(generate: Generate, request: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    answer = generate(request["prompts"], request["tokens"])
    return {
        "seconds": time.perf_counter() - started,
        "ids": answer.ids,
        "tokens": answer.tokens,
        "speculation": answer.speculation,
    }


def _say(answers: IO[str], message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split())[:500]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _version(peer: Peer) -> str | None:
    if not peer.package:
        return None
    try:
        return importlib.metadata.version(peer.package)
    except importlib.metadata.PackageNotFoundError:
        return None
