"""``--device`` against drivers that are played by a stand-in for pynvml."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from launcher.devices import check_device
from pdv_mp.config import ConfigError


class NVMLError(Exception):
    """Any error of the driver's library."""


class NoLibrary(NVMLError):
    """There is none."""


class NoDriver(NVMLError):
    """It has no driver to speak to."""


def play(patch: pytest.MonkeyPatch, gpus: int | type[NVMLError], visible: str | None) -> None:
    module = ModuleType("pynvml")

    def start() -> None:
        if not isinstance(gpus, int):
            raise gpus

    for name, value in {
        "NVMLError": NVMLError,
        "NVMLError_LibraryNotFound": NoLibrary,
        "NVMLError_DriverNotLoaded": NoDriver,
        "nvmlInit": start,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: gpus,
    }.items():
        setattr(module, name, value)
    patch.setitem(sys.modules, "pynvml", module)
    patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        patch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.mark.parametrize(
    ("gpus", "visible", "device"),
    [
        (NoLibrary, None, "cpu"),
        (NoLibrary, None, "auto"),
        (1, None, "cuda"),
        (2, None, "cuda:1"),
        (4, "2,3", "cuda:1"),
        (1, "GPU-8932f937", "cuda:0"),
        (NVMLError, None, "cuda:7"),  # whether there is one cannot be known here
    ],
)
def test_device_that_may_be_there(
    monkeypatch: pytest.MonkeyPatch, gpus: int | type[NVMLError], visible: str | None, device: str
) -> None:
    play(monkeypatch, gpus, visible)
    check_device(device)


@pytest.mark.parametrize(
    ("gpus", "visible", "device", "message"),
    [
        (1, None, "tpu", "is not a device; use auto, cpu or cuda:N"),
        (1, None, "cuda:", "is not a device"),
        (NoLibrary, None, "cuda", "no GPU that an NVIDIA driver makes available; use cpu"),
        (NoDriver, None, "cuda:0", "no GPU"),
        (0, None, "cuda", "no GPU"),
        (1, None, "cuda:1", "there is only cuda:0 here"),
        (2, None, "cuda:2", "there is only cuda:0 to cuda:1 here"),
        (2, "1", "cuda:1", "only cuda:0 here (CUDA_VISIBLE_DEVICES is '1')"),
        (2, "0,-1,1", "cuda:1", "only cuda:0 here"),
        (2, "", "cuda", "no GPU that an NVIDIA driver makes available (CUDA_VISIBLE_DEVICES is"),
    ],
)
def test_device_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
    gpus: int | type[NVMLError],
    visible: str | None,
    device: str,
    message: str,
) -> None:
    play(monkeypatch, gpus, visible)
    with pytest.raises(ConfigError) as caught:
        check_device(device)
    assert f"--device {device}" in str(caught.value).replace("'", "")
    assert message in str(caught.value)
