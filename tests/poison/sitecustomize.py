"""Makes a request kill its worker: put this folder on PYTHONPATH, and set POISON for the server.

POISON is ``PROCESS:STAGE:HOW:NTH``: the NTH batch of that stage in the life of a process PROCESS
which holds a request whose seed is POISONOUS ends it, by an exception (``raise``), a segmentation
fault (``crash``) or SIGKILL (``kill``).
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
from typing import Any

POISONOUS = 131_313


def seeds(stage: str, hosted: Any, batch: Any) -> Any:
    """The seeds of a batch's requests."""
    if stage == "prefill":
        return hosted._prompts.sampling._seeds[batch.slots]
    if stage == "verify":
        return hosted._table.sampling._seeds[batch.slots]
    hosted._sampling.put(batch.slots[batch.fresh], batch.sampling)
    return hosted._sampling._seeds[batch.slots]


def poison(stage: str, how: str, nth: int) -> None:
    module = importlib.import_module(f"pdv_mp.stages.{stage}")
    stage_class = getattr(module, f"{stage.capitalize()}Stage")
    run = stage_class.run
    left = nth

    def run_poisoned(self: Any, batch: Any) -> Any:
        nonlocal left
        if POISONOUS in seeds(stage, self, batch):
            left -= 1
            if left == 0:
                if how == "raise":
                    raise ArithmeticError("poisoned")
                if how == "crash":
                    ctypes.string_at(0)
                os.kill(os.getpid(), signal.SIGKILL)
        return run(self, batch)

    stage_class.run = run_poisoned


if "POISON" in os.environ:
    _process, _stage, _how, _nth = os.environ["POISON"].split(":")
    if _process in sys.orig_argv:
        poison(_stage, _how, int(_nth))
