"""What a device can do: bytes read and operations computed per second.

Of a GPU it is what a named one reaches, of the CPU at hand it is measured (:mod:`.machine`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Rates:
    """``bandwidth``: bytes/s from memory; ``flops``: operations/s of matrix products, of which a
    multiply-add is two; ``launch``: seconds that a layer takes at least, whatever it computes."""

    name: str
    bandwidth: float
    flops: float
    launch: float = 0.0


DEVICES: Mapping[str, Rates] = MappingProxyType(
    {
        device.name: device
        for device in (
            Rates("H200", 4.3e12, 790e12),
            Rates("H200, 12 µs per layer", 4.3e12, 790e12, 12e-6),
            Rates("H100 SXM", 3.0e12, 790e12),
            Rates("A100 SXM 80 GB", 1.75e12, 250e12),
        )
    }
)
"""What GPUs reach in bfloat16: about 0.9 of the memory bandwidth and 0.8 of the dense matrix rate
of their data sheets. The second row has the floor that a CUDA graph's replay leaves."""

DRIVERS_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "NVIDIA H200": "H200",
        "NVIDIA H100 80GB HBM3": "H100 SXM",
        "NVIDIA A100-SXM4-80GB": "A100 SXM 80 GB",
    }
)
"""As the driver calls whole ones of these; variants and slices of them reach less."""
