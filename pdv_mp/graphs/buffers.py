"""Buffers that a recorded step reads and writes; they stay where they are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_ALIGNMENT = 16

Fields = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shapes and types by name."""


class Inputs:
    """What the host gives a step: arrays to fill in, and tensors of the same names on the device.

    All fields are parts of one buffer, so that one copy takes them to the device.
    """

    def __init__(self, fields: Fields, device: torch.device) -> None:
        places, end = {}, 0
        for name, (shape, dtype) in fields.items():
            size = int(np.prod(shape)) * dtype.itemsize
            places[name] = (end, end + size)
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        self._host = torch.zeros(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.zeros(end, dtype=torch.uint8, device=device)
        self._sent = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

        def view(buffer: torch.Tensor, name: str) -> torch.Tensor:
            begin, stop = places[name]
            shape, dtype = fields[name]
            return buffer[begin:stop].view(dtype).view(shape)

        self.host: dict[str, npt.NDArray[Any]] = {
            name: view(self._host, name).numpy() for name in fields
        }
        self.device = {name: view(self._device, name) for name in fields}

    def begin(self) -> None:
        """Wait until what was sent before has left the host's buffer, which may then be filled."""
        if self._sent is not None:
            self._sent.synchronize()

    def send(self) -> None:
        """Queue the copy to the device."""
        self._device.copy_(self._host, non_blocking=True)
        if self._sent is not None:
            self._sent.record()

    @property
    def address(self) -> int:
        """Where the device's buffer lies."""
        return self._device.data_ptr()


class Output:
    """Integers that a step leaves on the device, and their way to the host.

    ``device`` int64 of the given shape: the step writes it.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.device = torch.zeros(shape, dtype=torch.int64, device=device)
        self._host = torch.zeros(shape, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._array: npt.NDArray[np.int64] = self._host.numpy()
        self._copied = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def fetch(self) -> None:
        """Queue the copy to the host."""
        self._host.copy_(self.device, non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    def wait(self) -> npt.NDArray[np.int64]:
        """What was fetched, once it is here; overwritten by the next fetch."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._array


class Stopwatch:
    """How long the device computes between two calls."""

    def __init__(self, device: torch.device) -> None:
        self._began = self._ended = 0
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        if device.type == "cuda":
            began = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._events = began, ended

    def start(self) -> None:
        """What is queued from now on counts."""
        self._began = time.perf_counter_ns()
        if self._events is not None:
            self._events[0].record()

    def stop(self) -> None:
        """What is queued from now on does not count."""
        self._ended = time.perf_counter_ns()
        if self._events is not None:
            self._events[1].record()

    @property
    def nanoseconds(self) -> int:
        """The time between, which is waited for."""
        if self._events is None:
            return self._ended - self._began
        began, ended = self._events
        ended.synchronize()
        return int(1e6 * began.elapsed_time(ended))
