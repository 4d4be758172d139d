"""Starts the processes of a server, watches them, and ends them: one loop over one poller.

What dies while the server serves or drains is started again as launcher/recovery.py says, as often
as its budget allows; the phase stays. Only a death beyond that budget, a process that cannot start
again, or the death of the front ends the server. A process that does not answer for too long is
killed (launcher/heartbeat.py), and then it is a death like any other.

Every phase but SERVING has a deadline, and what has not ended at the last one is killed. The first
SIGTERM, SIGINT or SIGHUP drains, the second aborts, a third kills.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from launcher.child import Child, ChildSpec
from launcher.ending import Ending
from launcher.groups import RestartGroups
from launcher.heartbeat import Heartbeat
from launcher.output import PREFIX
from launcher.phases import (
    EXIT_PROCESS_DIED,
    EXIT_RUNTIME,
    EXIT_START_FAILED,
    Phase,
    Timeouts,
)
from launcher.processes import Processes
from launcher.recovery import Recovery
from launcher.restarts import RestartPolicy
from launcher.signals import SignalFlags
from pdv_mp.process import SUPERVISED_SIGNALS
from pdv_mp.topology_rows import FRONT, GATEWAY, Topology
from pdv_mp.wire.control import (
    Bye,
    ControlError,
    ControlMessage,
    Drained,
    Failed,
    Hello,
    Ping,
    Pong,
    Progress,
    Ready,
    Received,
)

WATCHED_SIGNALS = (*SUPERVISED_SIGNALS, signal.SIGCHLD)
"""Those that ask the server to end, and the one that says that a child has ended."""

SAME_WISH_SECONDS = 0.01
"""Signals that arrive within this time of the first count as one."""


@dataclass(frozen=True, slots=True)
class ReadyReport:
    """What is known once every process is ready: facts and process ids by name."""

    facts: Mapping[str, dict[str, Any]]
    pids: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Hung:
    """A process that was killed for its silence: what to say of it, and until when it should have
    ended."""

    what: str
    deadline: float


class Supervisor:
    """Runs the processes of a topology until they have ended; use :meth:`run` once, in the main
    thread.

    ``specify`` says what to start for a name, given the generation that each process has, 0 at
    first. ``signals`` must be entered and include :data:`WATCHED_SIGNALS`.
    ``on_ready`` is called when every child is ready, ``on_restarted`` when one that had died is
    ready again. ``report`` is given each line that a user
    should see: the children's output, with their names before it, and our own messages.
    ``parent_fd``, if given, is the reading end of a pipe: when its other end is closed, the server
    is aborted. ``beside``: processes that are started besides those of the topology.
    """

    def __init__(
        self,
        run_dir: Path,
        topology: Topology,
        specify: Callable[[str, Mapping[str, int]], ChildSpec],
        signals: SignalFlags,
        *,
        on_ready: Callable[[ReadyReport], None],
        on_restarted: Callable[[ReadyReport], None],
        report: Callable[[str], None],
        timeouts: Timeouts | None = None,
        restarts: RestartPolicy | None = None,
        parent_fd: int | None = None,
        beside: Sequence[str] = (),
    ) -> None:
        self._signals = signals
        self._on_ready = on_ready
        self._on_restarted = on_restarted
        self._report = report
        self._timeouts = timeouts or Timeouts()
        self._parent_fd = parent_fd
        self._progress = "starting"
        self._facts: dict[str, dict[str, Any]] = {}
        self._groups = RestartGroups(topology)
        self._heartbeat = Heartbeat(self._timeouts.answer)
        self._hung: dict[int, Hung] = {}
        names = (*topology.process_names, *beside)
        self._processes = Processes(run_dir, names, specify, report)
        self._ending = Ending(self._processes, self._timeouts, say=self._say, give_up=self._give_up)
        self._recovery = Recovery(
            self._processes,
            self._groups,
            restarts or RestartPolicy(),
            self._timeouts,
            say=self._say,
            lose=self._ending.lose,
        )

    def run(self) -> int:
        """Starts, serves and stops; returns the exit code. No child is left when it returns."""
        poller = self._processes.poller
        try:
            poller.register(self._signals.fd, zmq.POLLIN)
            if self._parent_fd is not None:
                poller.register(self._parent_fd, zmq.POLLIN)
            self._start_all()
            while not self._finished():
                self._turn()
        finally:
            self._ending.kill_rest()
            self._processes.close()
        return self._ending.conclude()

    def _start_all(self) -> None:
        self._ending.enter(Phase.STARTING, self._timeouts.start)
        for name in self._processes.generations:
            try:
                self._processes.start(name)
            except OSError as error:
                self._ending.fail(EXIT_START_FAILED, f"{name} could not be started: {error}")
                return

    def _finished(self) -> bool:
        return self._ending.over or not any(child.alive for child in self._processes)

    def _turn(self) -> None:
        """Waits for the next thing to happen, and deals with it."""
        heartbeat = self._heartbeat.deadline if self._expects_answers else math.inf
        left = min(self._ending.deadline, self._recovery.deadline, heartbeat) - time.monotonic()
        timeout = None if math.isinf(left) else max(0, math.ceil(left * 1000))
        events = dict(self._processes.poller.poll(timeout))
        for child in self._processes:
            if child.output_fd in events:
                self._processes.forward_output(child)
        self._receive()
        self._take_signals()
        fd = self._parent_fd
        if fd is not None and fd in events and not os.read(fd, 4096):
            self._processes.poller.unregister(fd)
            self._ending.parent_gone()
        self._reap()
        self._recovery.act()
        if self._expects_answers:
            self._check_answers()
        if time.monotonic() >= self._ending.deadline:
            self._ending.too_late(self._progress)

    # What children say

    def _receive(self) -> None:
        while True:
            try:
                received = self._processes.receive()
                if received is None:
                    return
                self._handle(*received)
            except ControlError as error:
                self._say(f"dropped a control message: {error}")

    def _handle(self, child: Child, message: ControlMessage) -> None:
        if isinstance(message, Hello):
            self._progressed(child, "starting")
            self._ending.joined(child)
        elif isinstance(message, Progress):
            self._progressed(child, message.text)
        elif isinstance(message, Ready):
            self._child_ready(child, message.facts)
        elif isinstance(message, Pong):
            self._heartbeat.answered(child.pid, time.monotonic())
        elif isinstance(message, Failed):
            self._processes.send(child, Received())
            if self._ending.phase in (Phase.STARTING, Phase.STOPPING):
                self._ending.fail(
                    message.exit_code, f"{child.name} could not start: {message.message}"
                )
            else:
                self._recovery.failed(child, message.message)
        elif isinstance(message, Drained):
            if self._ending.phase in (Phase.DRAINING, Phase.ABORTING, Phase.LOSING):
                self._ending.drained(child)
            elif self._ending.phase is not Phase.STOPPING:
                raise ControlError(f"{child.name} has drained without being asked to")
        elif isinstance(message, Bye):
            self._processes.send(child, Received())
        else:
            raise ControlError(f"{child.name} sent a {type(message).__name__} message")

    def _progressed(self, child: Child, text: str) -> None:
        if not child.alive:  # its last words may arrive when its end has been noticed already
            return
        if self._ending.phase is Phase.STARTING:
            self._progress = f"{child.name}: {text}"
            self._ending.enter(Phase.STARTING, self._timeouts.start)
        else:
            self._recovery.progressed()

    def _child_ready(self, child: Child, facts: dict[str, Any]) -> None:
        if not child.alive:
            return
        child.ready = True
        self._facts[child.name] = facts
        self._progressed(child, "ready")
        if self._ending.phase is not Phase.STARTING:
            if self._recovery.ready(child):
                self._on_restarted(self._ready_report())
        elif all(child.ready for child in self._processes):
            self._ending.enter(Phase.SERVING, math.inf)
            try:
                self._on_ready(self._ready_report())
            except OSError as error:
                self._ending.fail(
                    EXIT_START_FAILED, f"cannot say that the server is ready: {error}"
                )

    def _ready_report(self) -> ReadyReport:
        return ReadyReport(self._facts, self._processes.pids)

    # Who is alive

    @property
    def _expects_answers(self) -> bool:
        return self._ending.phase in (Phase.SERVING, Phase.DRAINING)

    def _check_answers(self) -> None:
        """Asks all that are ready for a sign of life, and kills those that gave none.

        They are dead when they have been reaped, and not before: what they computed on a GPU may
        still write to memory that others would be given then.
        """
        now = time.monotonic()
        if now < self._heartbeat.deadline:
            return
        asked = {c.pid: c for c in self._processes if c.ready and c.alive and not c.killed}
        hung = self._heartbeat.look(asked, now)
        falling: set[str] = set()
        for child in self._weightiest_first(asked[pid] for pid in hung):
            if child.name not in falling:
                child.kill()
                falling.update(self._groups.falls_with(child.name))
                what = f"{child.name} did not answer for {hung[child.pid]:g} s and was killed"
                self._hung[child.pid] = Hung(what, now + self._timeouts.reap)
        for child in asked.values():
            if not child.killed:
                self._processes.send(child, Ping())
        for child in [child for child in self._processes if child.pid in self._hung]:
            if now >= self._hung[child.pid].deadline:
                self._died(child, self._hung.pop(child.pid).what, "")

    def _reap(self) -> None:
        """Deals with the children that have ended."""
        ended = [child for child in self._processes if child.alive and child.poll()]
        for child in self._weightiest_first(ended):
            self._child_ended(child)

    def _weightiest_first(self, children: Iterable[Child]) -> list[Child]:
        """Those that take most others along come first, so that nothing is started twice."""
        return sorted(children, key=lambda child: -len(self._groups.falls_with(child.name)))

    def _child_ended(self, child: Child) -> None:
        self._receive()  # what it said before it ended explains why
        self._processes.forward_output(child)
        hung = self._hung.pop(child.pid, None)
        what = f"{child.name} {child.describe_exit()}"
        tail = "".join(f"\n  {line}" for line in child.tail)
        ending = f"; the last that it wrote:{tail}" if tail else ""
        if self._ending.phase is Phase.STOPPING:
            if child.exit_status != 0 and not child.killed:
                self._ending.fail(EXIT_RUNTIME, f"{what} when told to stop")
            self._ending.child_ended()
        elif self._recovery.expects_end_of(child):
            if not child.killed:
                self._say(f"{what}, too{ending}")
        elif hung is not None:
            self._died(child, hung.what, "")
        else:
            if not child.ready:
                what += " before it was ready"
            self._died(child, what, ending)

    def _died(self, child: Child, what: str, ending: str) -> None:
        """A child is dead, or dying, that was not told to be; ``what`` and ``ending`` say how."""
        if self._ending.phase is Phase.STARTING:
            self._ending.fail(EXIT_START_FAILED, what + ending)
        elif child.name == FRONT or not self._processes[FRONT].alive:
            self._ending.fail(EXIT_PROCESS_DIED, what + ending)
        elif self._ending.phase is Phase.SERVING:
            self._recovery.died(child, what, ending)
        elif child.name == GATEWAY:  # its clients are gone; nobody else is to wait for it
            self._say(what + ending)
            self._ending.drained(child)
        elif self._ending.phase is Phase.DRAINING:
            self._recovery.died(child, what, ending)
        elif self._ending.phase is Phase.ABORTING:
            self._ending.lose(child.name, what + ending)

    # What asks us to end

    def _take_signals(self) -> None:
        asked = [number for number in self._signals.take() if number != signal.SIGCHLD]
        if asked:
            # `timeout` and some shells signal the process and its group: that asks once. Waiting
            # comes before any answer, so whoever has seen an answer and asks again is counted.
            time.sleep(SAME_WISH_SECONDS)
            self._signals.take()
            self._ending.wish(asked[0].name)

    def _give_up(self) -> None:
        self._recovery.clear()

    def _say(self, message: str) -> None:
        self._report(PREFIX + message)
