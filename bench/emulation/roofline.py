"""Cost tables of devices that are not at hand, from their bandwidth and arithmetic.

A step of B sequences with m rows each behind ctx tokens each takes

    T(B, m, ctx) = max(W / bandwidth, 2 N B m / flops)
                 + max(B ctx kv / bandwidth, 4 layers heads head_dim ctx B m / flops)
                 + floor layers

with W the bytes of the weights that a step reads (the output matrix is one of them, the input
embedding is not), N their number, kv the bytes of keys and values of a token, and floor what a
layer's kernels take however small they are. Attention within a chunk of a prompt is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from pdv_mp.emulation.cost_table import CostTable, ModelSizes, StepCosts

WEIGHT_BYTES = 2
FLOOR_US = 12.0
"""Of a layer, when kernels are launched as one graph."""

SEQUENCES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
CONTEXT = (0, 512, 2048, 4096)
DECODE_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 33, 65, 257)
PREFILL_ROWS = (1, 16, 64, 128, 192, 256, 512, 1024, 4096, 16384)


@dataclass(frozen=True, slots=True)
class Hardware:
    """``bandwidth`` bytes/s, ``flops`` 1/s (bfloat16), ``memory`` bytes, times in µs."""

    name: str
    bandwidth: float
    flops: float
    memory: int
    launch_us: float
    synchronize_us: float
    time_slice_us: float


@dataclass(frozen=True, slots=True)
class Architecture:
    """A Llama's sizes; ``inner``: of its feed-forward layers."""

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int

    @property
    def streamed(self) -> int:
        """Parameters that a step reads."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.inner + 2 * self.hidden
        return self.layers * layer + self.hidden + self.vocabulary * self.hidden

    @property
    def kv_bytes(self) -> int:
        """Of a token's keys and values."""
        return 2 * self.layers * self.kv_heads * self.head_dim * WEIGHT_BYTES

    @property
    def sizes(self) -> ModelSizes:
        """As a cost table has them."""
        return ModelSizes(
            name=self.name,
            dtype="bfloat16",
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            context=self.context,
            weight_bytes=WEIGHT_BYTES * (self.streamed + self.vocabulary * self.hidden),
        )


HARDWARE = {"h200": Hardware("H200", 4.3e12, 790e12, 139 * 2**30, 10.0, 10.0, 2000.0)}
"""Launch, synchronisation and time slice are assumptions; the others are those of the card."""

TINYLLAMA = Architecture("TinyLlama-1.1B", 2048, 5632, 22, 32, 4, 64, 32000, 2048)
LLAMA_2_7B = Architecture("Llama-2-7B", 4096, 11008, 32, 32, 32, 128, 32000, 4096)
CODELLAMA_34B = Architecture("CodeLlama-34B", 8192, 22016, 48, 64, 8, 128, 32000, 16384)

PAIRS = {
    "tinyllama": (TINYLLAMA, TINYLLAMA),
    "llama-2-7b": (LLAMA_2_7B, TINYLLAMA),
    "codellama-34b": (CODELLAMA_34B, TINYLLAMA),
}
"""The model pairs of the source documents: verifier and draft."""


def step_us(
    hardware: Hardware,
    model: Architecture,
    sequences: int,
    rows: int,
    context: int,
    floor_us: float,
) -> float:
    """Microseconds of a step, by the formula above."""
    tokens = sequences * rows
    weights = max(
        WEIGHT_BYTES * model.streamed / hardware.bandwidth,
        2 * model.streamed * tokens / hardware.flops,
    )
    pairs = 4 * model.layers * model.heads * model.head_dim * context * tokens
    attention = max(
        sequences * context * model.kv_bytes / hardware.bandwidth, pairs / hardware.flops
    )
    return 1e6 * (weights + attention) + floor_us * model.layers


def roofline_table(
    device: str, pair: str, acceptance: float, floor_us: float = FLOOR_US
) -> CostTable:
    """The cost table of one of :data:`PAIRS` on one of :data:`HARDWARE`."""
    hardware, (target, draft) = HARDWARE[device], PAIRS[pair]

    def costs(model: Architecture, rows: tuple[int, ...]) -> StepCosts:
        sequences = SEQUENCES[:6] if rows is PREFILL_ROWS else SEQUENCES
        times = tuple(
            tuple(
                tuple(
                    round(step_us(hardware, model, count, width, tokens, floor_us), 1)
                    for tokens in CONTEXT
                )
                for width in rows
            )
            for count in sequences
        )
        return StepCosts(sequences, rows, CONTEXT, times)

    return CostTable(
        name=f"{device}-{pair}",
        origin=(
            f"computed: roofline of an {hardware.name} ({hardware.bandwidth / 1e12:g} TB/s, "
            f"{hardware.flops / 1e12:g} TFLOP/s, {floor_us:g} µs a layer); launch, "
            "synchronisation, time slice and acceptance are assumed"
        ),
        acceptance=acceptance,
        memory_bytes=hardware.memory,
        launch_us=hardware.launch_us,
        synchronize_us=hardware.synchronize_us,
        time_slice_us=hardware.time_slice_us,
        overlap=False,
        models={"target": target.sizes, "draft": draft.sizes},
        steps={
            "prefill": costs(target, PREFILL_ROWS),
            "verify": costs(target, DECODE_ROWS),
            "prefill_draft": costs(draft, PREFILL_ROWS),
            "draft": costs(draft, DECODE_ROWS),
        },
    )
