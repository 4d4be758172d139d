"""The raw records of a sweep, as the lines of its JSON files hold them.

A *cell* is one candidate under one load with one model pair in one block. Everything that a report
says is derived from these records; nothing derived is kept beside them.
Names are the only identities: a candidate, a load and a pair are what their names say in
``run.json``, so exchanging two names in a folder exchanges all that is said of them.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

SCHEMA_VERSION = 2
"""Of ``run.json``, of every line, and of the tables made of them."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server that is measured: a topology and the options of ``pdv-launch`` besides.

    ``twin_of``: the candidate that it is a second server of, whose difference to it is noise.
    """

    name: str
    topology: str
    options: dict[str, Any] = {}
    twin_of: str | None = None


class Load(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How requests arrive. ``closed``: ``concurrency`` clients, each with one request open at a
    time. ``open``: ``rate`` requests/s, gaps gamma distributed with shape ``burstiness`` (1 is
    Poisson, less comes in bursts). ``trace``: as ``trace``, a file, says.
    """

    name: str
    kind: Literal["closed", "open", "trace"]
    concurrency: int | None = None
    rate: float | None = None
    burstiness: float | None = None
    trace: str | None = None


class Pair(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A verifier and its draft model: folders or hub ids, None for the shipped ones.

    Fingerprints: SHA-256 of the weights' files, None before they are known.
    """

    name: str
    model: str | None = None
    draft_model: str | None = None
    model_fingerprint: str | None = None
    draft_fingerprint: str | None = None


class Objective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request must keep to count as good, in ms; None: any."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the server of one candidate is set up for one pair: each option that ``pdv-launch`` has,
    by its group, defaults included."""

    pair: str
    candidate: str
    options: dict[str, Any]


class Run(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``run.json``: what was to be measured, and on what. Times in seconds.

    ``reference``: the candidate that ratios are taken of. ``environment``: versions, commit,
    hardware, load, environment variables; ``workload``: what the clients ask for.
    """

    schema_version: int
    started: str
    command: list[str]
    seed: int
    reference: str
    candidates: list[Candidate]
    pairs: list[Pair]
    loads: list[Load]
    blocks: int
    window: float
    ramp: float
    budget: float
    precision: float | None
    workload: dict[str, Any]
    objective: Objective
    environment: dict[str, Any]
    configurations: list[Configuration] = []


class Counts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the requests of a cell fared. ``offered`` is the sum of the others; ``cut_off``: open
    when the window ended."""

    offered: int = 0
    completed: int = 0
    refused: int = 0
    failed: int = 0
    cut_off: int = 0


class Use(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one process used in the window: cores on average, context switches, and bytes at the
    window's end (``pss_bytes`` None where the system does not tell)."""

    cores: float
    voluntary_switches: int
    involuntary_switches: int
    rss_bytes: int
    pss_bytes: int | None = None


class GpuUse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU in the window: mean utilisation of samples, 0 to 1, and the most memory in use."""

    name: str
    utilisation: float
    memory_bytes: int


class CellRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of ``cells.jsonl``; its requests are in ``requests/<id>.jsonl``.

    Block 0 is warm-up: its requests carry timelines (``followed``), and its rates do not count.
    ``order``: its turn within the block and load. ``failed``: why there is nothing to count, in one
    sentence; ``invalid``: why what there is does not count, such as clients that were late.
    ``lateness_ms``: how long after their scheduled arrival requests were sent, the 99th percentile.
    ``uses``: by process name, the clients' own process as ``clients``. ``took``: seconds that the
    cell cost, ramp, drain and any start of its server included.
    """

    schema_version: int
    id: str
    pair: str
    candidate: str
    load: str
    block: int
    order: int
    followed: bool
    started: str
    window_ns: int
    failed: str | None = None
    invalid: str | None = None
    counts: Counts = Counts()
    lateness_ms: float | None = None
    uses: dict[str, Use] = {}
    gpus: list[GpuUse] = []
    host_load: float | None = None
    took: float = 0.0


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of ``requests/<cell>.jsonl``. Times are ns after the window's start, and negative
    before it.

    ``arrival_ns``: when it was scheduled; in a closed loop, when it was sent. ``events``: when
    tokens arrived, and how many. ``ids``: the tokens; ``drafted``: 1 for each that was a draft
    token, as the server said. ``finish``: ``length``, ``stop``, ``abort`` (also of those that the
    window's end cut off), or None after an ``error``, its code. ``prompt``: the number of the
    prompt in the workload. The maps are those of the terminal message.
    """

    client: int
    prompt: int
    prompt_tokens: int
    max_tokens: int
    seed: int
    arrival_ns: int
    sent_ns: int
    ended_ns: int
    events: list[tuple[int, int]]
    ids: list[int]
    drafted: list[int]
    finish: str | None = None
    error: str | None = None
    cut_off: bool = False
    usage: dict[str, Any] | None = None
    speculation: dict[str, Any] | None = None
    timing: dict[str, Any] | None = None
    timeline: dict[str, Any] | None = None


class End(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``end.json``: why a sweep stopped. ``looked``: whether intervals were looked at on the way;
    ``alpha``: the error probability that all intervals of the report share."""

    schema_version: int
    blocks: int
    looked: bool
    alpha: float
    stopped: str
