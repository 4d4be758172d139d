"""Starts the processes of a server, watches them, and ends them: one loop over one poller.

    STARTING -> SERVING -> DRAINING -> ABORTING -> STOPPING
        |          |           |           |          ^
        |          +-----------+-----------+-> LOSING |   a worker died: the front tells its clients
        +-----------------------------------------+---+   a child failed, or a signal came early

A worker that dies in SERVING or DRAINING is started again under the next generation, as often as
its budget allows (launcher/restarts.py); the phase stays. Only a death beyond that budget, a worker
that cannot start again, or the death of the front ends the server.

Every phase but SERVING has a deadline, and what has not ended at the last one is killed. The first
SIGTERM, SIGINT or SIGHUP drains, the second aborts, a third kills.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import zmq

from launcher.child import Child, ChildSpec
from launcher.output import PREFIX
from launcher.restarts import Restart, RestartBudget, RestartPolicy
from launcher.signals import SignalFlags
from pdv_mp.binding import bind_ipc
from pdv_mp.control import CONTROL_SOCKET
from pdv_mp.process import SUPERVISED_SIGNALS
from pdv_mp.topology import FRONT
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
    Progress,
    Ready,
    Received,
    Restarting,
    Stop,
    SupervisorMessage,
    decode_control,
    encode_control,
)

EXIT_CLEAN = 0
EXIT_RUNTIME = 1
EXIT_START_FAILED = 3
EXIT_PROCESS_DIED = 4

WATCHED_SIGNALS = (*SUPERVISED_SIGNALS, signal.SIGCHLD)
"""Those that ask the server to end, and the one that says that a child has ended."""

SAME_WISH_SECONDS = 0.01
"""Signals that arrive within this time of the first count as one."""

MAX_CONTROL_BYTES = 1 << 20


class Phase(Enum):
    """Where the life of the server stands."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    ABORTING = "aborting"
    LOSING = "losing"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds that each phase may take.

    ``start``: without a sign of progress from any child. ``drain``: until open requests are
    aborted. ``abort``, ``lost``: for the front to answer its clients. ``stop``: for children to
    leave. ``failed_stop``: the same after a failure. ``reap``: for what was killed to be gone.
    """

    start: float = 600.0
    drain: float = 30.0
    abort: float = 5.0
    lost: float = 2.0
    stop: float = 10.0
    failed_stop: float = 2.0
    reap: float = 10.0


@dataclass(frozen=True, slots=True)
class ReadyReport:
    """What is known once every process is ready: facts and process ids by name."""

    facts: Mapping[str, dict[str, Any]]
    pids: Mapping[str, int]


class Supervisor:
    """Runs the named children until they have ended; use :meth:`run` once, in the main thread.

    ``specify`` says what to start for a name and a generation, which is 0 at first.
    ``signals`` must be entered and include :data:`WATCHED_SIGNALS`.
    ``on_ready`` is called when every child is ready, ``on_restarted`` when one that had died is
    ready again. ``report`` is given each line that a user
    should see: the children's output, with their names before it, and our own messages.
    ``parent_fd``, if given, is the reading end of a pipe: when its other end is closed, the server
    is aborted.
    """

    def __init__(
        self,
        run_dir: Path,
        names: Sequence[str],
        specify: Callable[[str, int], ChildSpec],
        signals: SignalFlags,
        *,
        on_ready: Callable[[ReadyReport], None],
        on_restarted: Callable[[ReadyReport], None] | None = None,
        report: Callable[[str], None],
        timeouts: Timeouts | None = None,
        restarts: RestartPolicy | None = None,
        parent_fd: int | None = None,
    ) -> None:
        self._run_dir = run_dir
        self._names = names
        self._specify = specify
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
        self._children: dict[str, Child] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self._policy = restarts or RestartPolicy()
        self._budgets = {name: RestartBudget(self._policy) for name in names if name != FRONT}
        self._restarts: dict[str, Restart] = {}

    def run(self) -> int:
        """Starts, serves and stops; returns the exit code. No child is left when it returns."""
        context = zmq.Context()
        control = context.socket(zmq.ROUTER)
        for option in (zmq.LINGER, zmq.SNDHWM, zmq.RCVHWM):
            control.setsockopt(option, 0)
        control.setsockopt(zmq.ROUTER_MANDATORY, 1)
        control.setsockopt(zmq.MAXMSGSIZE, MAX_CONTROL_BYTES)
        self._control = control
        self._poller = zmq.Poller()
        try:
            bind_ipc(control, self._run_dir / CONTROL_SOCKET)
            self._poller.register(control, zmq.POLLIN)
            self._poller.register(self._signals.fd, zmq.POLLIN)
            if self._parent_fd is not None:
                self._poller.register(self._parent_fd, zmq.POLLIN)
            self._start_children()
            while not self._finished():
                self._turn()
        finally:
            self._kill_rest()
            for child in self._children.values():
                child.close()
            control.close(linger=0)
            context.term()
        if self._outcome is None:
            return EXIT_CLEAN
        code, message = self._outcome
        self._say(message)
        return code

    def _start_children(self) -> None:
        self._enter(Phase.STARTING, self._timeouts.start)
        for name in self._names:
            try:
                self._start(name, 0)
            except OSError as error:
                self._fail(EXIT_START_FAILED, f"{name} could not be started: {error}")
                return

    def _start(self, name: str, generation: int) -> None:
        """Starts a process in a role, in the place of the one that had it. Raises OSError."""
        child = Child(self._specify(name, generation))
        previous = self._children.get(name)
        if previous is not None:
            if previous.output_fd in self._poller:  # something that it started still writes
                self._poller.unregister(previous.output_fd)
            previous.close()
        self._children[name] = child
        self._poller.register(child.output_fd, zmq.POLLIN)

    def _finished(self) -> bool:
        return self._over or not any(child.alive for child in self._children.values())

    def _turn(self) -> None:
        """Waits for the next thing to happen, and deals with it."""
        deadlines = (self._deadline, *(restart.deadline for restart in self._restarts.values()))
        left = min(deadlines) - time.monotonic()
        timeout = None if math.isinf(left) else max(0, math.ceil(left * 1000))
        events = dict(self._poller.poll(timeout))
        for child in self._children.values():
            if child.output_fd in events:
                self._forward_output(child)
        self._receive()
        self._take_signals()
        fd = self._parent_fd
        if fd is not None and fd in events and not os.read(fd, 4096):
            self._poller.unregister(fd)
            self._parent_gone()
        for child in self._children.values():
            if child.alive and child.poll():
                self._child_ended(child)
        now = time.monotonic()
        for restart in list(self._restarts.values()):
            if now >= restart.deadline:
                self._restart_is_due(restart)
        if now >= self._deadline:
            self._on_deadline()

    # What children say

    def _receive(self) -> None:
        while True:
            try:
                identity, *frames = self._control.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                if len(frames) != 1:
                    raise ControlError(f"{len(frames)} frames instead of one")
                self._handle(identity, decode_control(frames[0]))
            except ControlError as error:
                self._say(f"dropped a control message: {error}")

    def _handle(self, identity: bytes, message: ControlMessage) -> None:
        if isinstance(message, Hello):
            child = self._children.get(message.name)
            if child is None or child.pid != message.pid:
                raise ControlError(f"process {message.pid} is not our {message.name!r}")
            child.identity = identity
            self._progressed(child, "starting")
            if self._phase is Phase.STOPPING:
                self._send(child, Stop())
            return
        child = next((c for c in self._children.values() if c.identity == identity), None)
        if child is None:
            raise ControlError(f"{type(message).__name__} from a process that said no hello")
        if isinstance(message, Progress):
            self._progressed(child, message.text)
        elif isinstance(message, Ready):
            self._child_ready(child, message.facts)
        elif isinstance(message, Failed):
            self._send(child, Received())
            if child.name in self._restarts:
                self._lose(child.name, f"{child.name} could not start again: {message.message}")
            elif self._phase is not Phase.LOSING:
                self._fail(message.exit_code, f"{child.name} could not start: {message.message}")
        elif isinstance(message, Drained):
            if self._phase in (Phase.DRAINING, Phase.ABORTING, Phase.LOSING):
                self._stop()
            elif self._phase is not Phase.STOPPING:
                raise ControlError(f"{child.name} has drained without being asked to")
        elif isinstance(message, Bye):
            self._send(child, Received())
        else:
            raise ControlError(f"{child.name} sent a {type(message).__name__} message")

    def _progressed(self, child: Child, text: str) -> None:
        if not child.alive:  # its last words may arrive when its end has been noticed already
            return
        if self._phase is Phase.STARTING:
            self._progress = f"{child.name}: {text}"
            self._enter(Phase.STARTING, self._timeouts.start)
        elif child.name in self._restarts:
            self._restarts[child.name].deadline = time.monotonic() + self._timeouts.start

    def _child_ready(self, child: Child, facts: dict[str, Any]) -> None:
        if not child.alive:
            return
        child.ready = True
        self._facts[child.name] = facts
        self._progressed(child, "ready")
        if self._phase is Phase.STARTING and all(c.ready for c in self._children.values()):
            self._enter(Phase.SERVING, math.inf)
            try:
                self._on_ready(self._ready_report())
            except OSError as error:
                self._fail(EXIT_START_FAILED, f"cannot say that the server is ready: {error}")
        elif child.name in self._restarts:
            restart = self._restarts.pop(child.name)
            self._say(f"{child.name} serves again after {time.monotonic() - restart.died:.1f} s")
            if self._on_restarted is not None:
                self._on_restarted(self._ready_report())

    def _ready_report(self) -> ReadyReport:
        pids = {name: child.pid for name, child in self._children.items()}
        return ReadyReport(self._facts, pids)

    def _forward_output(self, child: Child) -> None:
        lines, closed = child.read_lines()
        for line in lines:
            self._report(f"[{child.name}] {line}")
        if closed:
            self._poller.unregister(child.output_fd)

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
            late = ", ".join(child.name for child in self._children.values() if child.alive)
            self._outcome = self._outcome or (EXIT_RUNTIME, f"{reason}: killed {late}")
            self._kill_rest()
        elif self._phase is Phase.STARTING:
            self._say(f"{reason} before the server was ready; stopping")
            self._stop_early()
        elif self._phase is Phase.SERVING:
            self._say(f"{reason}: draining; once more to abort")
            self._enter(Phase.DRAINING, self._timeouts.drain)
            self._send(self._children[FRONT], Drain())
        elif self._phase is Phase.DRAINING:
            self._say(f"{reason}: aborting open requests")
            self._abort()

    def _parent_gone(self) -> None:
        if self._phase is Phase.STARTING:
            self._stop_early()
        elif self._phase in (Phase.SERVING, Phase.DRAINING):
            self._abort()

    def _child_ended(self, child: Child) -> None:
        self._receive()  # what it said before it ended explains why
        if child.output_fd in self._poller:
            self._forward_output(child)
        if self._phase is Phase.STOPPING:
            if child.exit_status != 0 and not child.killed:
                self._fail(EXIT_RUNTIME, f"{child.name} {child.describe_exit()} when told to stop")
            return
        tail = "".join(f"\n  {line}" for line in child.tail)
        ending = f"; the last that it wrote:{tail}" if tail else ""
        what = f"{child.name} {child.describe_exit()}"
        if not child.ready:
            what += " before it was ready"
        if self._phase is Phase.STARTING:
            self._fail(EXIT_START_FAILED, what + ending)
        elif child.name == FRONT or not self._children[FRONT].alive:
            self._fail(EXIT_PROCESS_DIED, what + ending)
        elif self._phase in (Phase.SERVING, Phase.DRAINING):
            self._restart_or_lose(child.name, what, ending)
        elif self._phase is Phase.ABORTING:
            self._lose(child.name, what + ending)

    # Workers that died

    def _restart_or_lose(self, name: str, what: str, ending: str) -> None:
        budget, now = self._budgets[name], time.monotonic()
        delay = budget.death(now)
        most, seconds = self._policy.max_restarts, self._policy.window
        if delay is None:
            if most:
                what += f", after {most} restarts within {seconds:g} s"
            self._lose(name, what + ending)
            return
        when = f"in {delay:g} s" if delay else "now"
        count = f"restart {budget.restarts} of at most {most} within {seconds:g} s"
        self._say(f"{what}; it is started again {when} ({count}){ending}")
        # At once, so that the front waits for nothing from the dead process.
        self._send(self._children[FRONT], Restarting(name, budget.generation, budget.left))
        died = self._restarts[name].died if name in self._restarts else now
        self._restarts[name] = Restart(name, died, now + delay)
        if not delay:
            self._restart_is_due(self._restarts[name])

    def _restart_is_due(self, restart: Restart) -> None:
        """Its back-off is over, or it has been starting for too long."""
        name = restart.name
        if restart.started:
            self._children[name].kill()
            seconds = f"{self._timeouts.start:g} s"
            self._lose(name, f"{name} showed no progress for {seconds} of starting again")
            return
        try:
            self._start(name, self._budgets[name].generation)
        except OSError as error:
            self._lose(name, f"{name} could not be started again: {error}")
            return
        restart.started = True
        restart.deadline = time.monotonic() + self._timeouts.start

    def _lose(self, name: str, message: str) -> None:
        """A worker is gone for good: the front tells its clients, then everything ends."""
        self._outcome = self._outcome or (EXIT_PROCESS_DIED, message)
        self._restarts.clear()
        self._enter(Phase.LOSING, self._timeouts.lost)
        self._send(self._children[FRONT], Lost(name))

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
            late = [child.name for child in self._children.values() if child.alive]
            self._kill_rest()
            if self._outcome is None and not self._early_stop:
                self._outcome = (EXIT_RUNTIME, f"{', '.join(late)} did not stop and was killed")
        else:
            self._stop()

    # How we end

    def _abort(self) -> None:
        self._enter(Phase.ABORTING, self._timeouts.abort)
        self._send(self._children[FRONT], Abort())

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
        self._restarts.clear()
        if self._phase is not Phase.STARTING:
            for child in self._children.values():
                if not child.ready:  # starting again, and too busy to listen; nothing is lost
                    child.kill()
        hurried = self._early_stop or self._outcome is not None
        self._enter(Phase.STOPPING, self._timeouts.failed_stop if hurried else self._timeouts.stop)
        for child in self._children.values():
            if child.alive and child.identity is not None:
                self._send(child, Stop())

    def _kill_rest(self) -> None:
        """Kills what is still alive and waits, within bounds, until it is gone."""
        self._over = True
        for child in self._children.values():
            child.kill()
        deadline = time.monotonic() + self._timeouts.reap
        for child in self._children.values():
            child.wait(max(0.0, deadline - time.monotonic()))
            if child.alive:
                self._say(f"process {child.pid} ({child.name}) cannot be killed")
            if child.output_fd in self._poller:
                self._forward_output(child)

    def _say(self, message: str) -> None:
        self._report(PREFIX + message)

    def _enter(self, phase: Phase, seconds: float) -> None:
        self._phase = phase
        self._deadline = time.monotonic() + seconds

    def _send(self, child: Child, message: SupervisorMessage) -> None:
        if child.identity is None:
            return
        try:
            self._control.send_multipart((child.identity, encode_control(message)), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # It has closed its socket: its end is on its way and will be dealt with there.
            if error.errno != zmq.EHOSTUNREACH:
                raise
