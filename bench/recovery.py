"""How long a dead process is missed: ``python -m bench.recovery``.

Each topology serves the shipped pair. Once a round, one process of each kind but the front is
killed by SIGKILL while requests decode; one that takes in prompts is sent new ones right before.
The next kill waits until all requests have ended. The budget's window is the shortest, so that
there is no back-off to wait for.

``goes on`` is the time from the kill to the token that ends the longest silence of a request which
the process held: of the first such request, and of the last. The timelines say which were held (a
state ``restart``); a dead draft process holds nobody up, so there it is all that decoded. ``serves
again`` is the time from the kill until the launcher says that the process, and all that were
started anew with it, serve again. Seconds, median and range over the kills.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import click
import msgpack
import zmq

from launcher.groups import RestartGroups
from pdv_mp import assets
from pdv_mp.process import READY_FILE
from pdv_mp.topology import FRONT, ROWS, Topology, topology

TOPOLOGIES = ("unified", "baseline", "pd", "pdv")
SILENCE_MS = 60_000
WINDOW_SECONDS = 1
"""Of ``--restart-window``, the shortest that there is."""

TAKE_PROMPTS = ("tokenizer", "prefill")
_SERVES = re.compile(r"pdv-launch: (\S+) serves again")
_READY = re.compile(r"pdv-launch: ready on \S+ and (\S+) ")


@dataclass(slots=True)
class Kill:
    """What followed a kill, seconds: until the first and the last request went on, None if it held
    none, and until all served again that were started anew."""

    first: float | None
    last: float | None
    serves: float


@dataclass(slots=True)
class Stream:
    """When tokens of a request arrived, and whether it was held up by a restart; monotonic."""

    times: list[float] = field(default_factory=list)
    ended: bool = False
    restarted: bool = False

    def resumed(self, killed: float) -> float | None:
        """Seconds from the kill to the end of the longest silence after it; None if nothing came
        any more."""
        later = [killed, *(at for at in self.times if at > killed)]
        if len(later) == 1:
            return None
        gaps = [(after - before, after) for before, after in itertools.pairwise(later)]
        return max(gaps)[1] - killed


class Server:
    """A server of one topology, its log, and a client of it; a context manager.

    Raises RuntimeError if it does not start, or ends.
    """

    def __init__(self, name: str) -> None:
        life, self._life = os.pipe()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "launcher.launch", "--topology", name, "--port", "0"),
                *("--max-restarts", "1000000", "--restart-window", str(WINDOW_SECONDS)),
                *("--parent-fd", str(life)),
            ],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(life,),
        )
        os.close(life)
        if self._process.stderr is None:
            raise RuntimeError("subprocess.PIPE gave no pipe")
        self._pipe = self._process.stderr
        self._partial = b""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._poller = zmq.Poller()
        self._poller.register(self._pipe, zmq.POLLIN)
        self.serving: dict[str, float] = {}
        """When a process was last said to serve again, by name."""
        self.streams: dict[str, Stream] = {}
        self._endpoint = ""
        self._accepted = 0
        self._until(lambda: bool(self._endpoint))
        self._socket.connect(self._endpoint)
        self._poller.register(self._socket, zmq.POLLIN)

    def send(self, prompts: Sequence[str], tokens: int) -> list[Stream]:
        """Send one request for each prompt."""
        sent = []
        for prompt in prompts:
            id = str(len(self.streams))
            self.streams[id] = Stream()
            sent.append(self.streams[id])
            fields = {"id": id, "prompt": prompt, "max_tokens": tokens}
            self._say("generate", **fields, ignore_eos=True, timeline=True)
        return sent

    def wait_tokens(self, streams: Sequence[Stream], count: int) -> None:
        """Wait until so many of these requests have had a token."""
        self._until(lambda: sum(bool(stream.times) for stream in streams) >= count)

    def wait_accepted(self) -> None:
        """Wait until one more request has been accepted."""
        enough = self._accepted + 1
        self._until(lambda: self._accepted >= enough)

    def wait_ended(self) -> None:
        """Wait until nothing is open."""
        self._until(lambda: all(stream.ended for stream in self.streams.values()))

    def wait_serving(self, names: Sequence[str], since: float) -> float:
        """Wait until all of these have been said to serve again; when the last one was."""
        self._until(lambda: all(self.serving.get(name, 0.0) > since for name in names))
        return max(self.serving[name] for name in names)

    def pid(self, name: str) -> int:
        """Process id of the present process in that role."""
        path = Path(self._endpoint.removeprefix("ipc://")).with_name(READY_FILE)
        return int(json.loads(path.read_text(encoding="utf-8"))["pids"][name])

    def _say(self, kind: str, **fields: Any) -> None:
        self._socket.send(msgpack.packb({"v": 1, "type": kind, **fields}))

    def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            events = dict(self._poller.poll(SILENCE_MS))
            if not events:
                raise RuntimeError("the server says nothing any more")
            if self._pipe.fileno() in events:
                self._read_log()
            while self._socket in events and self._socket.poll(0):
                self._take(msgpack.unpackb(self._socket.recv()))

    def _read_log(self) -> None:
        data = os.read(self._pipe.fileno(), 65536)
        now = time.monotonic()
        if not data:
            raise RuntimeError(f"the server ended: {self._partial.decode(errors='replace')}")
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            if (found := _SERVES.match(text)) is not None:
                self.serving[found[1]] = now
            elif (found := _READY.match(text)) is not None:
                self._endpoint = found[1]
            elif "was killed by SIGKILL" not in text:
                print(text, file=sys.stderr)

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "error":
            raise RuntimeError(f"the server answered {message}")
        if kind == "accepted":
            self._accepted += 1
        elif kind == "tokens":
            self.streams[message["id"]].times.append(time.monotonic())
        elif kind == "done":
            stream = self.streams[message["id"]]
            stream.ended = True
            states = message["timeline"]["states"]
            stream.restarted = any(state.endswith(".restart") for state in states)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._life)
        self._socket.close(linger=0)
        self._context.term()
        while self._pipe.read(65536):
            pass
        self._pipe.close()
        self._process.wait()


def kinds(row: Topology) -> dict[str, list[str]]:
    """The processes that are killed, by what they do."""
    found: dict[str, list[str]] = {}
    for name in row.process_names:
        if name != FRONT:
            found.setdefault(name.partition("-")[0], []).append(name)
    return found


def kill(
    server: Server,
    row: Topology,
    name: str,
    decoding: Sequence[str],
    new: Sequence[str],
    tokens: int,
) -> Kill:
    """Kill one process while it is busy, and see what follows."""
    streams = server.send(decoding, tokens)
    each = row.scheduler.max_batch
    server.wait_tokens(streams, len(streams) if each is None else each * row.replicas)
    kind = name.partition("-")[0]
    if kind in TAKE_PROMPTS:
        streams += server.send(new, tokens)
        if kind == "prefill":
            server.wait_accepted()
    pid = server.pid(name)
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    serves = server.wait_serving(RestartGroups(row).falls_with(name), killed) - killed
    server.wait_ended()
    held = [stream for stream in streams if stream.restarted or kind == "draft"]
    times = [at for stream in held if (at := stream.resumed(killed)) is not None]
    return Kill(min(times, default=None), max(times, default=None), serves)


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "held none"
    low, middle, high = min(known), statistics.median(known), max(known)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def texts(characters: int) -> Iterator[str]:
    """Pieces of the held-out files, again and again."""
    while True:
        for _, text in assets.heldout_files():
            for start in range(0, len(text) - characters, characters):
                yield text[start : start + characters]


@click.command(help=__doc__)
@click.option(
    "--topology",
    "names",
    multiple=True,
    default=TOPOLOGIES,
    show_default=True,
    type=click.Choice(tuple(ROWS)),
)
@click.option("--kills", default=5, show_default=True, type=click.IntRange(1), help="of each kind")
@click.option("--requests", default=8, show_default=True, type=click.IntRange(1, 24))
@click.option("--tokens", default=128, show_default=True, type=click.IntRange(2, 512))
@click.option("--characters", default=1000, show_default=True, type=click.IntRange(1, 4000))
def main(names: Sequence[str], kills: int, requests: int, tokens: int, characters: int) -> None:
    pieces = texts(characters)
    rows = []
    for name in names:
        row = topology(name)
        found: dict[str, list[Kill]] = {kind: [] for kind in kinds(row)}
        with Server(name) as server:
            for turn in range(kills):
                for kind, processes in kinds(row).items():
                    victim = processes[turn % len(processes)]
                    decoding = [next(pieces) for _ in range(requests)]
                    new = [next(pieces) for _ in range(requests)]
                    found[kind].append(kill(server, row, victim, decoding, new, tokens))
                print(f"{name}: round {turn + 1} of {kills} done", file=sys.stderr)
        for kind, seen in found.items():
            cells = (
                _spread([part.first for part in seen]),
                _spread([part.last for part in seen]),
                _spread([part.serves for part in seen]),
            )
            rows.append(f"| {name} | {kind} | {' | '.join(cells)} |")
    print("| topology | killed | first goes on | last goes on | serves again |")
    print("| --- | --- | --- | --- | --- |")
    print("\n".join(rows))
    print(f"\n{kills} kills of each kind with {requests} requests of {tokens} tokens, seconds")


if __name__ == "__main__":
    main()
