"""The table of measurements, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.gpu_facts import attention, hop, ipc, machine, mps, overlap, slicing, speed
from bench.gpu_facts.facts import Report


@dataclass(frozen=True)
class Measurement:
    """One process of its own: what it measures, and after how many seconds it is killed."""

    title: str
    run: Callable[[Report], None]
    seconds: float


MEASUREMENTS = {
    "machine": Measurement("The machine", machine.measure_machine, 60),
    "ipc": Measurement("Memory shared by CUDA IPC handles", ipc.measure_ipc, 90),
    "hop": Measurement("A hand-over between two processes", hop.measure_hop, 90),
    "streams": Measurement(
        "Overlap of draft and verifier: one process, two streams", overlap.measure_two_streams, 120
    ),
    "processes": Measurement(
        "Overlap of draft and verifier: two processes", overlap.measure_two_processes, 180
    ),
    "slices": Measurement("Time slices", slicing.measure_slices, 60),
    "priorities": Measurement("Priorities of streams", slicing.measure_priorities, 60),
    "mps": Measurement("Overlap under MPS", mps.measure_mps, 180),
    "gemm": Measurement("Products of matrices", speed.measure_gemm, 60),
    "bandwidth": Measurement("Bandwidth", speed.measure_bandwidth, 60),
    "launches": Measurement("Launches and small copies", speed.measure_launches, 60),
    "graphs": Measurement("Steps of the shipped pair as CUDA graphs", speed.measure_graphs, 90),
    "attention": Measurement("Attention", attention.measure_attention, 90),
    "context": Measurement("Memory of a process", machine.measure_context, 90),
    "owner": Measurement("When the owner of memory is killed", ipc.measure_owner_death, 120),
}
