"""The file of ``--trace``: what the processes recorded (pdv_mp/workers/trace.py), in the Trace
Event Format that ui.perfetto.dev and chrome://tracing read.

Each process is a process there, under one name for all its generations. Its stages are threads with
their batches as slices; each edge is a thread with the encoding of its messages in the sender and
their decoding in the receiver, joined by an arrow. How many tokens are drafted is a counter of the
process that decides it. A message is known to its receiver, so one that
never arrived is not there. Times are microseconds of the monotonic clock.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pdv_mp.config import ConfigError
from pdv_mp.topology_rows import FRONT, STAGES, Topology
from pdv_mp.workers.trace import (
    BATCH,
    BATCH_STAGES,
    DECISION,
    EDGES,
    PARTS_PER_UNIT,
    TracePart,
    read_parts,
)

TOKENIZER = "tokenizer"
"""What the processes that tokenize are called, with a number, and their end of an edge."""

Track = tuple[str, str]
"""Names of a process and of a thread in it."""


@dataclass(slots=True)
class _Slice:
    """``flow``: the number of the arrow that starts or ends here; ``phase`` says which."""

    start_ns: int
    end_ns: int
    name: str
    arguments: dict[str, int] = field(default_factory=dict)
    flow: int = 0
    phase: str = ""


@dataclass(frozen=True, slots=True)
class _Decision:
    """How many tokens are drafted from a moment on, and how likely one is held to be kept."""

    now_ns: int
    length: int
    acceptance: float


def check_trace_path(path: Path) -> None:
    """Raises ConfigError if a trace cannot be written there."""
    if path.is_dir():
        raise ConfigError(f"--trace {path} is a folder; name a file")
    folder = path.parent
    if not folder.is_dir():
        raise ConfigError(f"--trace {path}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--trace {path}: the folder {folder} cannot be written to")


def write_trace(run_dir: Path, row: Topology, path: Path) -> None:
    """Makes the file from what the processes of a run directory have recorded; whoever reads it
    sees all of it or what was there before. Raises OSError if it cannot be written."""
    parts = read_parts(run_dir)
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(fd, "w", encoding="utf-8") as file:
            _write(file, parts, row)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def _write(file: IO[str], parts: list[TracePart], row: Topology) -> None:
    lost = {f"{part.process}.{part.generation}": part.lost for part in parts if part.lost}
    facts = {"topology": row.name, "records that were overwritten": lost}
    file.write(f'{{"displayTimeUnit": "ns", "otherData": {json.dumps(facts)}, "traceEvents": [\n')
    before = ""
    for event in _events(_tracks(parts, row), _decisions(parts), row):
        file.write(before + json.dumps(event, separators=(",", ":")))
        before = ",\n"
    file.write("\n]}\n")


def _tracks(parts: list[TracePart], row: Topology) -> dict[Track, list[_Slice]]:
    tracks: dict[Track, list[_Slice]] = {}
    flow = 0
    for part in parts:
        for kind, *record in part.records.tolist():
            if kind == DECISION:
                continue
            if kind == BATCH:
                track, batch = _batch(part.process, record, row)
                tracks.setdefault(track, []).append(batch)
            else:
                flow += 1
                for track, end in _message(part.process, record, row, flow):
                    tracks.setdefault(track, []).append(end)
    for slices in tracks.values():
        _separate(slices)
    return tracks


def _decisions(parts: list[TracePart]) -> dict[str, list[_Decision]]:
    """By process, in the order of time."""
    found: dict[str, list[_Decision]] = {}
    for part in parts:
        for kind, _, _, length, _, acceptance, now, *_ in part.records.tolist():
            if kind == DECISION:
                decision = _Decision(now, length, acceptance / PARTS_PER_UNIT)
                found.setdefault(part.process, []).append(decision)
    return found


def _batch(process: str, record: list[Any], row: Topology) -> tuple[Track, _Slice]:
    what, _, sequences, rows, decoding, picked, started, ended, _ = record
    stage = BATCH_STAGES[what]
    arguments = {
        "sequences": sequences,
        "rows": rows,
        "decoding": decoding,
        "batch_ns": started - picked,
    }
    if stage not in STAGES:
        del arguments["decoding"]
        return (process, stage), _Slice(picked, ended, stage, arguments)
    return (_host(stage, process, row), stage), _Slice(picked, ended, stage, arguments)


def _message(
    process: str, record: list[Any], row: Topology, flow: int
) -> Iterator[tuple[Track, _Slice]]:
    what, replica, size, _, _, encode, sent, received, decoded = record
    edge = EDGES[what]
    peer = process
    if TOKENIZER in edge:
        peer = f"{TOKENIZER}-{replica}"
    elif process == FRONT:
        peer = row.scheduler_names[replica]
    sender, receiver = (_host(stage, peer, row) for stage in edge.split(">"))
    arguments = {"wire_ns": received - sent}
    if size:
        arguments["bytes"] = size
    track = f"{edge} {peer}" if process == FRONT and row.replicas > 1 else edge
    yield (sender, track), _Slice(encode, sent, f"encode {edge}", arguments, flow, "s")
    yield (receiver, track), _Slice(received, decoded, f"decode {edge}", arguments, flow, "f")


def _host(stage: str, peer: str, row: Topology) -> str:
    """The process that hosts a stage: the front, the tokenizer ``peer``, or, for the replica of the
    scheduler's process ``peer``, whoever the topology says."""
    if stage == FRONT:
        return FRONT
    if stage == TOKENIZER:
        return peer
    _, replica = row.place(peer)
    return row.lanes(replica).get(stage, peer)


def _separate(slices: list[_Slice]) -> None:
    """Order the slices of a track, and cut what several of them claim off the later ones: messages
    that are sent in one go have one stamp for the start of their encoding."""
    slices.sort(key=lambda item: (item.start_ns, item.end_ns))
    end = 0
    for item in slices:
        item.start_ns = max(item.start_ns, end)
        end = item.end_ns = max(item.end_ns, item.start_ns)


def _events(
    tracks: dict[Track, list[_Slice]], decisions: dict[str, list[_Decision]], row: Topology
) -> Iterator[dict[str, Any]]:
    known = (*(process for process, _ in tracks), *decisions)
    names = dict.fromkeys((*row.process_names, *known))
    order = {name: number for number, name in enumerate(names, 1)}
    threads = sorted(tracks, key=lambda track: (order[track[0]], ">" in track[1], track[1]))
    for name in dict.fromkeys(process for process, _ in threads):
        yield _metadata("process_name", order[name], 0, {"name": name})
        yield _metadata("process_sort_index", order[name], 0, {"sort_index": order[name]})
    for number, (process, thread) in enumerate(threads, 1):
        yield _metadata("thread_name", order[process], number, {"name": thread})
        yield _metadata("thread_sort_index", order[process], number, {"sort_index": number})
    for number, track in enumerate(threads, 1):
        place = {"pid": order[track[0]], "tid": number}
        for item in tracks[track]:
            start = item.start_ns / 1000
            event = {"ph": "X", "name": item.name, "cat": track[1], **place, "ts": start}
            yield {**event, "dur": (item.end_ns - item.start_ns) / 1000, "args": item.arguments}
            if item.phase:
                binding = {"bp": "e"} if item.phase == "f" else {}
                edge = item.name.partition(" ")[2]
                arrow = {"ph": item.phase, "name": edge, "cat": "handoff", "id": item.flow}
                yield {**arrow, **place, "ts": start, **binding}

    for process, made in decisions.items():
        for decision in made:
            counter = {"ph": "C", "pid": order[process], "ts": decision.now_ns / 1000}
            yield {**counter, "name": "draft length", "args": {"tokens": decision.length}}
            expected = {"probability": decision.acceptance}
            yield {**counter, "name": "expected acceptance", "args": expected}


def _metadata(name: str, pid: int, tid: int, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": pid, "tid": tid, "args": arguments}
