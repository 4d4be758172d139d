"""``--trace``: a file that trace viewers open, whatever ended the server."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_arguments
from server_process import ServerProcess, run_launch
from tiny_model import TinyPair

from launcher.trace_file import write_trace
from pdv_mp.client.client import Client, Completion
from pdv_mp.sampling_params import SamplingParams
from pdv_mp.topology import ROWS
from pdv_mp.wire.frames import Stamps
from pdv_mp.workers.trace import PART_PREFIX, Trace

Start = Callable[..., ServerProcess]
Track = tuple[str, str]

BETWEEN = {
    "unified": {"front>verify", "verify>front"},
    "baseline": {"front>verify", "verify>front"},
    "pd": {"front>verify", "verify>front", "verify>prefill", "prefill>verify"},
    "pdv": {
        "front>verify",
        "verify>front",
        "verify>prefill",
        "prefill>verify",
        "verify>draft",
        "draft>verify",
    },
}
"""Edges that join two processes."""


class TraceFile:
    """A trace, checked: slices of a track do not overlap, each arrow has both its ends, and either
    lies in a slice of its track."""

    def __init__(self, path: Path) -> None:
        self.document = json.loads(path.read_text(encoding="utf-8"))
        names: dict[int, str] = {}
        threads: dict[tuple[int, int], str] = {}
        self.slices: dict[Track, list[dict[str, Any]]] = defaultdict(list)
        self.counters: dict[Track, list[dict[str, Any]]] = defaultdict(list)
        arrows: dict[int, dict[str, dict[str, Any]]] = defaultdict(dict)
        for event in self.document["traceEvents"]:
            if event["ph"] == "M" and event["name"] == "process_name":
                names[event["pid"]] = event["args"]["name"]
            elif event["ph"] == "M" and event["name"] == "thread_name":
                threads[event["pid"], event["tid"]] = event["args"]["name"]
        for event in self.document["traceEvents"]:
            if event["ph"] == "M":
                continue
            if event["ph"] == "C":
                self.counters[names[event["pid"]], event["name"]].append(event["args"])
                continue
            track = names[event["pid"]], threads[event["pid"], event["tid"]]
            if event["ph"] == "X":
                assert event["dur"] >= 0
                self.slices[track].append(event)
            else:
                assert event["ph"] not in arrows[event["id"]]
                arrows[event["id"]][event["ph"]] = event
                assert any(
                    item["ts"] <= event["ts"] <= item["ts"] + item["dur"]
                    for item in self.slices[track]
                )
        assert len(set(names.values())) == len(names)
        assert all(set(arrow) == {"s", "f"} for arrow in arrows.values())
        assert all(arrow["s"]["ts"] <= arrow["f"]["ts"] for arrow in arrows.values())
        self.arrows = Counter(arrow["s"]["name"] for arrow in arrows.values())
        for slices in self.slices.values():
            end = 0.0
            for item in sorted(slices, key=lambda item: (item["ts"], item["dur"])):
                assert item["ts"] >= end - 0.001
                end = item["ts"] + item["dur"]

    @property
    def stages(self) -> set[Track]:
        """Tracks with batches."""
        return {track for track in self.slices if ">" not in track[1]}


def generate(client: Client, count: int = 6, tokens: int = 12) -> None:
    for number in range(count):
        client.submit([number + 1, 2, 3], SamplingParams(max_tokens=tokens, ignore_eos=True))
    assert all(isinstance(done, Completion) for done in client.results())


def generate_with_drafts(client: Client) -> None:
    """The verifier decodes alone until it has heard from the draft lane."""
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    while not client.complete([1, 2, 3], params).speculation["drafted"]:
        pass


@pytest.mark.parametrize("name", BETWEEN)
def test_a_server_of_each_topology_is_traced(
    start_server: Start, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "trace.json"
    server = start_server("--topology", name, "--trace", str(path), "--no-enable-prefix-caching")
    with Client(server.ipc) as client:
        generate(client)
        generate_with_drafts(client)
        info = client.info()
    assert not path.exists()
    assert server.stop(signal.SIGINT).code == 0
    trace = TraceFile(path)
    row = ROWS[name]
    places = {
        (process, stage)
        for replica in range(row.replicas)
        for worker, process in zip(row.workers, row.names_in(replica), strict=True)
        for stage in worker.stages
    }
    used = {("front", "text")}
    used |= {place for place in places if name != "baseline" or place[0] == "worker-0"}
    assert used <= trace.stages <= places | {("front", "text")}
    assert set(trace.arrows) == BETWEEN[name]
    for edge, count in trace.arrows.items():
        assert count == info["handoffs"][edge]["messages"], edge
    batches = Counter[str]()
    for (_, stage), slices in trace.slices.items():
        if stage in info["batch_totals"]:
            batches[stage] += len(slices)
            assert all(item["args"]["rows"] >= 1 for item in slices)
    assert batches == {stage: total["batches"] for stage, total in info["batch_totals"].items()}
    decided = [
        entry
        for place, found in trace.counters.items()
        for entry in found
        if place[0] in row.scheduler_names and place[1] == "draft length"
    ]
    assert len(decided) >= sum(info["speculation"]["lengths"].values()) > 0
    assert trace.document["otherData"]["records that were overwritten"] == {}


def test_what_a_killed_worker_and_lane_did_is_in_the_trace(
    start_server: Start, tmp_path: Path
) -> None:
    path = tmp_path / "trace.json"
    server = start_server("--topology", "pdv", "--trace", str(path))
    with Client(server.ipc) as client:
        for victim in ("draft-0", "verify-0"):
            generate_with_drafts(client)
            pids = json.loads((server.run_dir / "ready.json").read_text())["pids"]
            stream = client.generate([1, 2], SamplingParams(max_tokens=60, ignore_eos=True))
            next(stream)
            os.kill(pids[victim], signal.SIGKILL)
            assert len(stream.result().ids) == 60
        generate_with_drafts(client)
    assert server.stop().code == 0
    trace = TraceFile(path)
    assert trace.stages == {
        ("front", "text"),
        ("prefill-0", "prefill"),
        ("draft-0", "draft"),
        ("verify-0", "verify"),
    }
    assert set(trace.arrows) == BETWEEN["pdv"]


def test_a_server_that_ends_by_the_death_of_a_worker_leaves_its_trace(
    start_server: Start, tmp_path: Path
) -> None:
    path = tmp_path / "trace.json"
    path.write_text("of an earlier run")
    server = start_server("--trace", str(path), "--max-restarts", "0")
    with Client(server.ipc) as client:
        generate(client)
    os.kill(server.pids["worker-0"], signal.SIGKILL)
    assert server.wait().code == 4
    assert ("worker-0", "verify") in TraceFile(path).stages


def test_messages_sent_in_one_go_share_no_time(tmp_path: Path) -> None:
    part = Trace(tmp_path / f"{PART_PREFIX}front.0")
    for sent in (20, 30, 40):
        part.message("verify>front", Stamps(10, sent, 100, 100 + sent, 7))
    part.close()
    write_trace(tmp_path, ROWS["unified"], tmp_path / "trace.json")
    trace = TraceFile(tmp_path / "trace.json")
    encoded = trace.slices["worker-0", "verify>front"]
    assert [(item["ts"], item["dur"]) for item in encoded] == [
        (0.01, 0.01),
        (0.02, 0.01),
        (0.03, 0.01),
    ]


def test_draft_lengths_are_a_counter_of_the_process_that_decides_them(tmp_path: Path) -> None:
    part = Trace(tmp_path / f"{PART_PREFIX}worker-0.0")
    part.decision(2000, 4, 7, 0.6254)
    part.decision(3000, 0, 7, 0.25)
    part.close()
    write_trace(tmp_path, ROWS["unified"], tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [(event["name"], event["ts"], event["args"]) for event in events] == [
        ("draft length", 2.0, {"tokens": 4}),
        ("expected acceptance", 2.0, {"probability": 0.6254}),
        ("draft length", 3.0, {"tokens": 0}),
        ("expected acceptance", 3.0, {"probability": 0.25}),
    ]
    assert {event["ph"] for event in events} == {"C"}


def test_tokenizers_have_tracks_of_their_own(tmp_path: Path) -> None:
    front = Trace(tmp_path / f"{PART_PREFIX}front.0")
    front.message("front>tokenizer", Stamps(10, 20, 100, 110, 7), replica=1)
    front.message("tokenizer>front", Stamps(200, 210, 220, 230, 7), replica=1)
    front.close()
    tokenizer = Trace(tmp_path / f"{PART_PREFIX}tokenizer-1.0")
    tokenizer.batch("tokenizer", (120, 130, 190), 1, 9)
    tokenizer.close()
    write_trace(tmp_path, ROWS["unified"], tmp_path / "trace.json")
    trace = TraceFile(tmp_path / "trace.json")
    assert trace.stages == {("tokenizer-1", "tokenizer")}
    assert set(trace.slices) == {
        ("tokenizer-1", "tokenizer"),
        *((process, edge) for process in ("front", "tokenizer-1") for edge in trace.arrows),
    }


def test_a_path_that_cannot_be_written_is_refused_at_once(
    tiny_pair: TinyPair, tmp_path: Path
) -> None:
    for path, reason in (
        (tmp_path, "is a folder; name a file"),
        (tmp_path / "no" / "trace.json", f"the folder {tmp_path / 'no'} does not exist"),
    ):
        done = run_launch(*tiny_arguments(tiny_pair), "--port", "0", "--trace", str(path))
        assert done.code == 2
        (message,) = [line for line in done.stderr.splitlines() if "--trace" in line]
        assert message.endswith(reason)
        assert "ready on" not in done.stderr


def test_a_trace_that_cannot_be_written_at_the_end_is_said(
    start_server: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    server = start_server("--trace", str(folder / "trace.json"))
    folder.rmdir()
    done = server.stop()
    assert done.code == 1
    assert any("was not written: No such file or directory" in line for line in done.messages)
