"""Coverage-guided fuzzing of pdv_mp.wire's decoders and of HTTP bodies, with atheris (libFuzzer).

    python tests/fuzz/fuzz_wire.py SECONDS

Half of the mutations are libFuzzer's own, on bytes; the other half replace, remove or repeat a
value within the msgpack, so that what lies behind the unpacking is reached too. An input that
breaks a property of wire_properties.py is written to corpus/, where pytest replays it ever after,
and the exit status is not 0. Without atheris this says so, and fails only where CI is set.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

try:
    import atheris
except ImportError:
    print("fuzz_wire: atheris is not installed; there are wheels for Linux on x86-64 only")
    sys.exit(1 if os.environ.get("CI") else 0)
import msgpack

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

with atheris.instrument_imports(include=["pdv_mp.wire", "gateway.jobs", "gateway.refusals"]):
    import gateway.jobs  # noqa: F401 - what is imported here is instrumented
    import pdv_mp.wire.client_messages
    import pdv_mp.wire.control
    import pdv_mp.wire.engine
    import pdv_mp.wire.frames
    import pdv_mp.wire.protocol

from fuzz.wire_properties import CHECKS, check, seeds

CORPUS = Path(__file__).with_name("corpus")
MAX_BYTES = 2048
INPUT_SECONDS = 10
MEMORY_MIB = 2048

ENGINE = 1
"""First byte of an input for pdv_mp.wire.engine: its msgpack lies between header and columns."""

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    21,
    2**31,
    2**53 - 1,
    2**53,
    2**64 - 1,
    -(2**63),
    0.5,
    -0.0,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "a",
    "x" * 129,
    "\U0001f642",
    b"bytes",
    [],
    [1, 2],
    [[], {}],
    ["x"] * 17,
    {},
    {"a": 1},
    {1: 2},
    msgpack.ExtType(5, b"x"),
    msgpack.Timestamp(1),
)


def mutate_values(data: bytes, generator: random.Random) -> bytes | None:
    """The input with one value of its msgpack changed; None if that cannot be read."""
    start, end = 1, len(data)
    if data[0] % len(CHECKS) == ENGINE:
        header = pdv_mp.wire.frames.HEADER
        if len(data) < 1 + header.size:
            return None
        start = 1 + header.size
        end = start + header.unpack_from(data, 1)[2]
    try:
        value = msgpack.unpackb(data[start:end], strict_map_key=False)
        changed = msgpack.packb(_changed(value, generator))
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
        return None
    result = bytearray(data[:start] + changed + data[end:])
    if start > 1:  # the header says how long the msgpack is
        result[9:13] = len(changed).to_bytes(4, "little")
    return bytes(result)


def _changed(value: Any, generator: random.Random) -> Any:
    if not isinstance(value, (dict, list)) or not value or generator.random() < 0.05:
        return generator.choice(VALUES)
    items = dict(value) if isinstance(value, dict) else list(value)
    key = generator.choice(list(items) if isinstance(items, dict) else range(len(items)))
    action = generator.randrange(6)
    if action == 0:
        del items[key]
    elif action == 1 and isinstance(items, list):
        items.insert(key, items[key])
    elif action == 2:
        items[key] = _changed(items[key], generator)
    else:
        items[key] = generator.choice(VALUES)
    return items


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """libFuzzer's hook."""
    generator = random.Random(seed)
    changed = mutate_values(data, generator) if data and generator.random() < 0.5 else None
    if changed is None or len(changed) > max_size:
        mutated: bytes = atheris.Mutate(data, max_size)
        return mutated
    return changed


def main() -> None:
    """Fuzz for as many seconds as the command line says."""
    if len(sys.argv) != 2 or not sys.argv[1].isdecimal() or int(sys.argv[1]) < 1:
        sys.exit("usage: fuzz_wire.py SECONDS")
    with tempfile.TemporaryDirectory(prefix="pdv-fuzz-") as folder:
        for number, seed in enumerate(seeds()):
            Path(folder, f"seed-{number}").write_bytes(seed)
        options = {
            "max_total_time": int(sys.argv[1]),
            "max_len": MAX_BYTES,
            "timeout": INPUT_SECONDS,
            "rss_limit_mb": MEMORY_MIB,
            "artifact_prefix": f"{CORPUS}/",
            "print_final_stats": 1,
        }
        arguments = [f"-{name}={value}" for name, value in options.items()]
        atheris.Setup([sys.argv[0], *arguments, folder, str(CORPUS)], check, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
