"""Makes a request kill its worker: put this folder on PYTHONPATH, and set POISON for the server.

POISON is ``STAGE:HOW:NTH``: the NTH batch of that stage in the life of a worker which holds a
request whose prompt begins with three tokens POISONOUS ends the worker, by an exception
(``raise``), a segmentation fault (``crash``) or SIGKILL (``kill``).
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
from typing import Any

POISONOUS = 13


def poison(stage: str, how: str, nth: int) -> None:
    module = importlib.import_module(f"pdv_mp.stages.{stage}")
    stage_class = getattr(module, f"{stage.capitalize()}Stage")
    run = stage_class.run
    left = nth

    def run_poisoned(self: Any, batch: Any) -> Any:
        nonlocal left
        if (self._table.tokens[batch.slots, :3] == POISONOUS).all(axis=1).any():
            left -= 1
            if left == 0:
                if how == "raise":
                    raise ArithmeticError("poisoned")
                if how == "crash":
                    ctypes.string_at(0)
                os.kill(os.getpid(), signal.SIGKILL)
        return run(self, batch)

    stage_class.run = run_poisoned


if "POISON" in os.environ and "worker-0" in sys.orig_argv:
    _stage, _how, _nth = os.environ["POISON"].split(":")
    poison(_stage, _how, int(_nth))
