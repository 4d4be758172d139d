"""The phases of a running server, and the ways from each to the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from launcher.child import Child
from launcher.phases import (
    EXIT_CLEAN,
    EXIT_PROCESS_DIED,
    EXIT_RUNTIME,
    EXIT_START_FAILED,
    Phase,
    Timeouts,
)
from launcher.processes import Processes
from pdv_mp.topology_rows import FRONT, GATEWAY, POOLS
from pdv_mp.wire.control import Abort, Drain, Lost, Stop


class Ending:
    """Which phase the server is in, until when, and with which outcome it ends.

    ``give_up`` is called when nothing is to be started again from now on. ``over`` is true when
    there is nothing left to wait for.
    """

    def __init__(
        self,
        processes: Processes,
        timeouts: Timeouts,
        *,
        say: Callable[[str], None],
        give_up: Callable[[], None],
    ) -> None:
        self.phase = Phase.STARTING
        self.deadline = math.inf
        self.over = False
        self._processes = processes
        self._timeouts = timeouts
        self._say = say
        self._give_up = give_up
        self._outcome: tuple[int, str] | None = None
        self._wishes = 0
        self._early = False
        self._drained: set[str] = set()
        self._order: Drain | Abort | Lost | None = None

    def enter(self, phase: Phase, seconds: float) -> None:
        """Begins a phase, or the time that it may take, anew."""
        self.phase = phase
        self.deadline = time.monotonic() + seconds

    def conclude(self) -> int:
        """Says why the server ended, if it was not asked to; returns the exit code."""
        if self._outcome is None:
            return EXIT_CLEAN
        code, message = self._outcome
        self._say(message)
        return code

    def wish(self, reason: str) -> None:
        """Somebody wants the server to end: gently at first, then at once, then by force."""
        self._wishes += 1
        if self._wishes > 2:
            late = ", ".join(child.name for child in self._processes if child.alive)
            self._outcome = self._outcome or (EXIT_RUNTIME, f"{reason}: killed {late}")
            self.kill_rest()
        elif self.phase is Phase.STARTING:
            self._say(f"{reason} before the server was ready; stopping")
            self._stop_early()
        elif self.phase is Phase.SERVING:
            self._say(f"{reason}: draining; once more to abort")
            self.enter(Phase.DRAINING, self._timeouts.drain)
            self._tell(Drain())
        elif self.phase is Phase.DRAINING:
            self._say(f"{reason}: aborting open requests")
            self._abort()

    def parent_gone(self) -> None:
        """Whoever wanted this server is gone."""
        if self.phase is Phase.STARTING:
            self._stop_early()
        elif self.phase in (Phase.SERVING, Phase.DRAINING):
            self._abort()

    def too_late(self, progress: str) -> None:
        """The deadline has passed; ``progress`` is the last that is known of starting."""
        if self.phase is Phase.STARTING:
            self.fail(
                EXIT_START_FAILED,
                f"nothing happened for {self._timeouts.start:g} s of starting "
                f"(the last was {progress})",
            )
        elif self.phase is Phase.DRAINING:
            seconds = f"{self._timeouts.drain:g} s"
            self._say(f"requests are still open after {seconds}; aborting them")
            self._abort()
        elif self.phase is Phase.STOPPING:
            alive = [child.name for child in self._processes if child.alive]
            late = [name for name in alive if name != POOLS] or alive
            self.kill_rest()
            if self._outcome is None and not self._early:
                self._outcome = (EXIT_RUNTIME, f"{', '.join(late)} did not stop and was killed")
        else:
            self.stop()

    def _abort(self) -> None:
        self.enter(Phase.ABORTING, self._timeouts.abort)
        self._tell(Abort())

    def lose(self, name: str, message: str) -> None:
        """A process is gone for good: the front tells its clients, then everything ends."""
        self._outcome = self._outcome or (EXIT_PROCESS_DIED, message)
        self._give_up()
        self.enter(Phase.LOSING, self._timeouts.lost)
        self._tell(Lost(name))

    def joined(self, child: Child) -> None:
        """A process has begun, perhaps in the place of one that was told how the server ends."""
        if self._order is not None and child in self._with_clients():
            self._processes.send(child, self._order)

    def _tell(self, order: Drain | Abort | Lost) -> None:
        """Those who have clients are to take no more; the gateway, a client of the front, first."""
        self._order = order
        for child in self._with_clients():
            if child.alive:
                self._processes.send(child, order)

    def _with_clients(self) -> list[Child]:
        names = (GATEWAY, FRONT)
        there = {child.name: child for child in self._processes}
        return [there[name] for name in names if name in there]

    def drained(self, child: Child) -> None:
        """A process has no client's request open any more. Everything ends when none has one."""
        self._drained.add(child.name)
        if all(other.name in self._drained or not other.alive for other in self._with_clients()):
            self.stop()

    def fail(self, code: int, message: str) -> None:
        """Ends everything; the first failure is the one that is reported."""
        self._outcome = self._outcome or (code, message)
        if self.phase is not Phase.STOPPING:
            self.stop()

    def _stop_early(self) -> None:
        """Stops children that may be too busy starting to listen: to kill them is no failure."""
        self._early = True
        self.stop()

    def stop(self) -> None:
        """Tells every child to leave."""
        self._give_up()
        if self.phase is not Phase.STARTING:
            for child in self._processes:
                if not child.ready:  # starting again, and too busy to listen; nothing is lost
                    child.kill()
        hurried = self._early or self._outcome is not None
        self.enter(Phase.STOPPING, self._timeouts.failed_stop if hurried else self._timeouts.stop)
        for child in self._processes:
            if child.alive and child.name != POOLS:
                self._processes.send(child, Stop())
        self.child_ended()

    def child_ended(self) -> None:
        """Tells the owner of shared memory to leave when nobody is left who may have mapped it: on
        a GPU what still computes with freed memory fails."""
        alive = [child for child in self._processes if child.alive]
        if self.phase is Phase.STOPPING and [child.name for child in alive] == [POOLS]:
            self._processes.send(alive[0], Stop())

    def kill_rest(self) -> None:
        """Kills what is still alive and waits, within bounds, until it is gone."""
        self.over = True
        for child in self._processes.kill_all(self._timeouts.reap):
            self._say(f"process {child.pid} ({child.name}) cannot be killed")
