"""The rates and shapes that a sweep keeps beside its results, so that bounds can be had later:
``environment.roofline`` of its ``run.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from bench.roofline.machine import measure
from bench.roofline.models import ModelCost
from bench.roofline.rates import DEVICES, DRIVERS_NAMES, Rates
from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.errors import ModelError

KEY = "roofline"


class PairCosts(msgspec.Struct, frozen=True):
    """Both models of a pair."""

    verifier: ModelCost
    draft: ModelCost


class Recorded(msgspec.Struct, frozen=True):
    """``device``: what the rates are of; ``measured``: on the spot, or a named device's from the
    table. ``pairs``: those whose shapes are known."""

    device: str
    measured: bool
    bandwidth: float
    flops: float
    pairs: dict[str, PairCosts]

    @property
    def rates(self) -> Rates:
        """For bounds."""
        return Rates(self.device, self.bandwidth, self.flops)


def facts(
    machine: Mapping[str, Any], options: Mapping[str, Any], pairs: Mapping[str, tuple[Path, Path]]
) -> Recorded | None:
    """``machine``: as in a run's environment; ``options``: the server's on its models; ``pairs``:
    folders of verifier and draft by name. None for a device whose rates are not known."""
    gpus = [str(gpu.get("name")) for gpu in machine.get("gpus") or ()]
    on_gpu = bool(gpus) and options.get("device") != "cpu"
    if on_gpu:
        name = DRIVERS_NAMES.get(gpus[0])
        rates = None if name is None else DEVICES[name]
    else:
        found = measure(options.get("threads") or machine.get("usable") or 1)
        rates = None if found is None else found.rates
    if rates is None:
        return None
    narrow = options.get("dtype") in ("bfloat16", "float16") or (
        on_gpu and options.get("dtype") != "float32"
    )
    costs = {}
    for name, folders in pairs.items():
        try:
            verifier, draft = (
                ModelCost.of(ModelConfig.from_folder(folder), 2 if narrow else 4)
                for folder in folders
            )
        except ModelError:  # of an architecture that only transformers knows
            continue
        costs[name] = PairCosts(verifier, draft)
    return Recorded(rates.name, not on_gpu, rates.bandwidth, rates.flops, costs)


def recorded_in(environment: Mapping[str, Any]) -> Recorded | None:
    """None in results without, such as those of older versions."""
    try:
        return msgspec.convert(environment.get(KEY), Recorded | None)
    except msgspec.ValidationError:
        return None
