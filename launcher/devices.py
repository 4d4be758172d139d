"""Whether this machine has the device of ``--device``, asked of the NVIDIA driver without torch."""

from __future__ import annotations

import os
import re

from pdv_mp.config import ConfigError
from pdv_mp.emulation.device_name import EmulatedName


def check_device(name: str, what: str = "--device") -> None:
    """Raises ConfigError for a name that is none, and for a GPU that this machine lacks; ``what``
    says where the name was given.

    Where the driver's library answers with another error than that there is no driver, the worker
    is left to find out.
    """
    if EmulatedName.parse(name) is not None:
        return
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d{1,4}))?", name)
    if match is None:
        raise ConfigError(
            f"{what} {name!r} is not a device; use auto, cpu or cuda:N, or emulated:FILE"
        )
    if not name.startswith("cuda"):
        return
    count = visible_gpus()
    if count is None:
        return
    if count == 0:
        raise ConfigError(
            f"{what} {name}: this machine has no GPU that an NVIDIA driver makes available"
            f"{_because_hidden()}; use cpu"
        )
    if int(match[1] or 0) >= count:
        highest = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise ConfigError(f"{what} {name}: there is only {highest} here{_because_hidden()}")


def visible_gpus() -> int | None:
    """How many GPUs the driver and ``CUDA_VISIBLE_DEVICES`` offer; None if it cannot be known."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return 0
    except pynvml.NVMLError:
        return None
    try:
        count = int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return count
    visible = 0
    for entry in filter(None, (part.strip() for part in chosen.split(","))):
        if re.fullmatch(r"-?\d+", entry) and not 0 <= int(entry) < count:
            break  # CUDA ignores what follows an index that there is not
        visible += 1  # the names of GPUs and their parts are taken as they are
    return visible


def _because_hidden() -> str:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if chosen is None else f" (CUDA_VISIBLE_DEVICES is {chosen!r})"
