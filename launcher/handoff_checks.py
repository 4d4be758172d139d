"""Which ways of handing work over a topology allows."""

from __future__ import annotations

from launcher.devices import visible_gpus
from pdv_mp.config import ConfigError, EngineConfig
from pdv_mp.lanes.injected_delay import parse_delays
from pdv_mp.topology import Topology
from pdv_mp.topology_rows import TOKENIZER


def check_handoff(config: EngineConfig, row: Topology) -> None:
    """Raises ConfigError for an option that the topology makes impossible or meaningless."""
    delays = parse_delays(config.handoff.inject_delay)
    lanes = row.lanes(0)
    for edge in delays:
        ends = set(edge.split(">")) - {"verify", "front"}
        if not ends <= {*lanes, *([TOKENIZER] if row.tokenizers else [])}:
            raise ConfigError(
                f"--inject-delay: topology {row.name!r} has no messages from "
                f"{edge.replace('>', ' to ')}"
            )
    if config.handoff.hybrid and "draft" not in lanes:
        raise ConfigError(
            f"--hybrid is for a topology that drafts in a process of its own; {row.name!r} does not"
        )
    if config.handoff.draft_ahead and "draft" not in lanes:
        raise ConfigError(
            f"--draft-ahead is for a topology that drafts in a process of its own; {row.name!r} "
            "does not"
        )
    if config.handoff.hybrid and config.handoff.draft_ahead:
        raise ConfigError(
            "--hybrid and --draft-ahead do not go together: a lone request would be drafted here "
            "while the draft process still writes ahead for it; leave one out"
        )
    if config.handoff.hybrid and config.cache.kv_handoff != "pool":
        raise ConfigError(
            f"--hybrid drafts in two processes, which need the same KV: leave out --kv-handoff "
            f"{config.cache.kv_handoff}"
        )
    device = config.model.device
    if config.handoff.exclusive_device and device.startswith("cuda"):
        raise ConfigError("--exclusive-device is for a CPU; a GPU slices its time by itself")
    on_cpu = device == "cpu" or (device == "auto" and visible_gpus() == 0)
    if config.scheduling.streams > 1 and on_cpu:
        raise ConfigError(
            f"--streams {config.scheduling.streams} is for a GPU, and the device here is cpu: "
            "leave it out"
        )
    if config.speculation.acceptance == "rejection" and "draft" in lanes:
        raise ConfigError(
            "--acceptance rejection needs the draft's probabilities where the verifier is; "
            f"topology {row.name!r} drafts in another process: use unified, pd or baseline"
        )
