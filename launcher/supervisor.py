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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from launcher.child import Child, ChildSpec
from launcher.groups import RestartGroups
from launcher.heartbeat import Heartbeat
from launcher.output import PREFIX
from launcher.phases import (
    EXIT_CLEAN,
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
from pdv_mp.topology_rows import FRONT, Topology
from pdv_mp.wire.control import (
    Abort,
    Bye,
    ControlError,
    ControlMessage,
    Drain,
    Drained,
    Failed,
    Hello,
    Lost,
    Ping,
    Pong,
    Progress,
    Ready,
    Received,
    Stop,
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


class Supervisor:
    """Runs the processes of a topology until they have ended; use :meth:`run` once, in the main
    thread.

    ``specify`` says what to start for a name, given the generation that each process has, 0 at
    first. ``signals`` must be entered and include :data:`WATCHED_SIGNALS`.
    ``on_ready`` is called when every child is ready, ``on_restarted`` when one that had died is
    ready again. ``report`` is given each line that a user
    should see: the children's output, with their names before it, and our own messages.
    ``parent_fd``, if given, is the reading end of a pipe: when its other end is closed, the server
    is aborted.
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
    ) -> None:
        self._signals = signals
        self._on_ready = on_ready
        self._on_restarted = on_restarted
        self._report = report
        self._timeouts = timeouts or Timeouts()
        self._parent_fd = parent_fd
        self._phase = Phase.STARTING
        self._deadline = math.inf
        self._outcome: tuple[int, str] | None = None
        self._stops = 0
        self._early_stop = False
        self._over = False
        self._progress = "starting"
        self._facts: dict[str, dict[str, Any]] = {}
        self._groups = RestartGroups(topology)
        self._heartbeat = Heartbeat(self._timeouts.answer)
        self._processes = Processes(run_dir, topology.process_names, specify, report)
        self._recovery = Recovery(
            self._processes,
            self._groups,
            restarts or RestartPolicy(),
            self._timeouts,
            say=self._say,
            lose=self._lose,
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
            self._kill_rest()
            self._processes.close()
        if self._outcome is None:
            return EXIT_CLEAN
        code, message = self._outcome
        self._say(message)
        return code

    def _start_all(self) -> None:
        self._enter(Phase.STARTING, self._timeouts.start)
        for name in self._processes.generations:
            try:
                self._processes.start(name)
            except OSError as error:
                self._fail(EXIT_START_FAILED, f"{name} could not be started: {error}")
                return

    def _finished(self) -> bool:
        return self._over or not any(child.alive for child in self._processes)

    def _turn(self) -> None:
        """Waits for the next thing to happen, and deals with it."""
        heartbeat = self._heartbeat.deadline if self._expects_answers else math.inf
        left = min(self._deadline, self._recovery.deadline, heartbeat) - time.monotonic()
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
            self._parent_gone()
        self._reap()
        self._recovery.act()
        if self._expects_answers:
            self._check_answers()
        if time.monotonic() >= self._deadline:
            self._on_deadline()

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
        elif isinstance(message, Progress):
            self._progressed(child, message.text)
        elif isinstance(message, Ready):
            self._child_ready(child, message.facts)
        elif isinstance(message, Pong):
            self._heartbeat.answered(child.pid, time.monotonic())
        elif isinstance(message, Failed):
            self._processes.send(child, Received())
            if self._phase in (Phase.STARTING, Phase.STOPPING):
                self._fail(message.exit_code, f"{child.name} could not start: {message.message}")
            else:
                self._recovery.failed(child, message.message)
        elif isinstance(message, Drained):
            if self._phase in (Phase.DRAINING, Phase.ABORTING, Phase.LOSING):
                self._stop()
            elif self._phase is not Phase.STOPPING:
                raise ControlError(f"{child.name} has drained without being asked to")
        elif isinstance(message, Bye):
            self._processes.send(child, Received())
        else:
            raise ControlError(f"{child.name} sent a {type(message).__name__} message")

    def _progressed(self, child: Child, text: str) -> None:
        if not child.alive:  # its last words may arrive when its end has been noticed already
            return
        if self._phase is Phase.STARTING:
            self._progress = f"{child.name}: {text}"
            self._enter(Phase.STARTING, self._timeouts.start)
        else:
            self._recovery.progressed()

    def _child_ready(self, child: Child, facts: dict[str, Any]) -> None:
        if not child.alive:
            return
        child.ready = True
        self._facts[child.name] = facts
        self._progressed(child, "ready")
        if self._phase is not Phase.STARTING:
            if self._recovery.ready(child):
                self._on_restarted(self._ready_report())
        elif all(child.ready for child in self._processes):
            self._enter(Phase.SERVING, math.inf)
            try:
                self._on_ready(self._ready_report())
            except OSError as error:
                self._fail(EXIT_START_FAILED, f"cannot say that the server is ready: {error}")

    def _ready_report(self) -> ReadyReport:
        return ReadyReport(self._facts, self._processes.pids)

    # Who is alive

    @property
    def _expects_answers(self) -> bool:
        return self._phase in (Phase.SERVING, Phase.DRAINING)

    def _check_answers(self) -> None:
        """Asks all that are ready for a sign of life, and kills those that gave none."""
        now = time.monotonic()
        asked = {c.pid: c for c in self._processes if c.ready and c.alive and not c.killed}
        for pid in self._heartbeat.hung(asked, now):
            child = asked[pid]
            if child.killed or not self._expects_answers:  # it fell with the one before
                continue
            child.kill()
            seconds = f"{self._timeouts.answer:g} s"
            self._died(child, f"{child.name} did not answer for {seconds} and was killed", "")
        if self._heartbeat.ping_is_due(now):
            for child in asked.values():
                if not child.killed:
                    self._processes.send(child, Ping())

    def _reap(self) -> None:
        """Deals with the children that have ended: first with those that take others along."""
        ended = [child for child in self._processes if child.alive and child.poll()]
        for child in sorted(ended, key=lambda child: -len(self._groups.falls_with(child.name))):
            self._child_ended(child)

    def _child_ended(self, child: Child) -> None:
        self._receive()  # what it said before it ended explains why
        self._processes.forward_output(child)
        what = f"{child.name} {child.describe_exit()}"
        tail = "".join(f"\n  {line}" for line in child.tail)
        ending = f"; the last that it wrote:{tail}" if tail else ""
        if self._phase is Phase.STOPPING:
            if child.exit_status != 0 and not child.killed:
                self._fail(EXIT_RUNTIME, f"{what} when told to stop")
        elif self._recovery.expects_end_of(child):
            if not child.killed:
                self._say(f"{what}, too{ending}")
        else:
            if not child.ready:
                what += " before it was ready"
            self._died(child, what, ending)

    def _died(self, child: Child, what: str, ending: str) -> None:
        """A child is dead, or dying, that was not told to be; ``what`` and ``ending`` say how."""
        if self._phase is Phase.STARTING:
            self._fail(EXIT_START_FAILED, what + ending)
        elif child.name == FRONT or not self._processes[FRONT].alive:
            self._fail(EXIT_PROCESS_DIED, what + ending)
        elif self._phase in (Phase.SERVING, Phase.DRAINING):
            self._recovery.died(child, what, ending)
        elif self._phase is Phase.ABORTING:
            self._lose(child.name, what + ending)

    # What asks us to end

    def _take_signals(self) -> None:
        asked = [number for number in self._signals.take() if number != signal.SIGCHLD]
        if asked:
            # `timeout` and some shells signal the process and its group: that asks once. Waiting
            # comes before any answer, so whoever has seen an answer and asks again is counted.
            time.sleep(SAME_WISH_SECONDS)
            self._signals.take()
            self._stop_asked(asked[0].name)

    def _stop_asked(self, reason: str) -> None:
        self._stops += 1
        if self._stops > 2:
            late = ", ".join(child.name for child in self._processes if child.alive)
            self._outcome = self._outcome or (EXIT_RUNTIME, f"{reason}: killed {late}")
            self._kill_rest()
        elif self._phase is Phase.STARTING:
            self._say(f"{reason} before the server was ready; stopping")
            self._stop_early()
        elif self._phase is Phase.SERVING:
            self._say(f"{reason}: draining; once more to abort")
            self._enter(Phase.DRAINING, self._timeouts.drain)
            self._processes.send(self._processes[FRONT], Drain())
        elif self._phase is Phase.DRAINING:
            self._say(f"{reason}: aborting open requests")
            self._abort()

    def _parent_gone(self) -> None:
        if self._phase is Phase.STARTING:
            self._stop_early()
        elif self._phase in (Phase.SERVING, Phase.DRAINING):
            self._abort()

    def _on_deadline(self) -> None:
        if self._phase is Phase.STARTING:
            self._fail(
                EXIT_START_FAILED,
                f"nothing happened for {self._timeouts.start:g} s of starting "
                f"(the last was {self._progress})",
            )
        elif self._phase is Phase.DRAINING:
            seconds = f"{self._timeouts.drain:g} s"
            self._say(f"requests are still open after {seconds}; aborting them")
            self._abort()
        elif self._phase is Phase.STOPPING:
            late = [child.name for child in self._processes if child.alive]
            self._kill_rest()
            if self._outcome is None and not self._early_stop:
                self._outcome = (EXIT_RUNTIME, f"{', '.join(late)} did not stop and was killed")
        else:
            self._stop()

    # How we end

    def _abort(self) -> None:
        self._enter(Phase.ABORTING, self._timeouts.abort)
        self._processes.send(self._processes[FRONT], Abort())

    def _lose(self, name: str, message: str) -> None:
        """A process is gone for good: the front tells its clients, then everything ends."""
        self._outcome = self._outcome or (EXIT_PROCESS_DIED, message)
        self._recovery.clear()
        self._enter(Phase.LOSING, self._timeouts.lost)
        self._processes.send(self._processes[FRONT], Lost(name))

    def _fail(self, code: int, message: str) -> None:
        """Ends everything; the first failure is the one that is reported."""
        self._outcome = self._outcome or (code, message)
        if self._phase is not Phase.STOPPING:
            self._stop()

    def _stop_early(self) -> None:
        """Stops children that may be too busy starting to listen: to kill them is no failure."""
        self._early_stop = True
        self._stop()

    def _stop(self) -> None:
        self._recovery.clear()
        if self._phase is not Phase.STARTING:
            for child in self._processes:
                if not child.ready:  # starting again, and too busy to listen; nothing is lost
                    child.kill()
        hurried = self._early_stop or self._outcome is not None
        self._enter(Phase.STOPPING, self._timeouts.failed_stop if hurried else self._timeouts.stop)
        for child in self._processes:
            if child.alive:
                self._processes.send(child, Stop())

    def _kill_rest(self) -> None:
        """Kills what is still alive and waits, within bounds, until it is gone."""
        self._over = True
        for child in self._processes.kill_all(self._timeouts.reap):
            self._say(f"process {child.pid} ({child.name}) cannot be killed")

    def _say(self, message: str) -> None:
        self._report(PREFIX + message)

    def _enter(self, phase: Phase, seconds: float) -> None:
        self._phase = phase
        self._deadline = time.monotonic() + seconds
