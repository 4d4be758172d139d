"""Starts again what died, together with all that cannot go on without it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from launcher.child import Child
from launcher.groups import RestartGroups
from launcher.phases import Timeouts
from launcher.processes import Processes
from launcher.restarts import Restart, RestartBudget, RestartPolicy
from pdv_mp.topology_rows import FRONT
from pdv_mp.wire.control import Restarting


class Recovery:
    """The restarts under way. A process has at most one; a new death in its group replaces it.

    A death takes the whole group of the dead process with it: everybody in it gets its next
    generation at once, is killed, and starts again when all have been reaped. So nobody writes any
    more to memory that a successor uses. Only the process that died pays with its budget.
    ``say`` reports a line; ``lose`` is called with a name and a reason when it is not to be started
    again.
    """

    def __init__(
        self,
        processes: Processes,
        groups: RestartGroups,
        policy: RestartPolicy,
        timeouts: Timeouts,
        *,
        say: Callable[[str], None],
        lose: Callable[[str, str], None],
    ) -> None:
        self._processes = processes
        self._groups = groups
        self._policy = policy
        self._timeouts = timeouts
        self._say = say
        self._lose = lose
        self._budgets = {
            name: RestartBudget(policy) for name in processes.generations if name != FRONT
        }
        self._restarts: dict[str, Restart] = {}

    @property
    def deadline(self) -> float:
        """When :meth:`act` has something to do."""
        return min((restart.deadline for restart in self._restarts.values()), default=math.inf)

    def expects_end_of(self, child: Child) -> bool:
        """Whether the process is to end, since it is replaced."""
        restart = self._restarts.get(child.name)
        return restart is not None and not restart.started

    def died(self, child: Child, what: str, ending: str) -> None:
        """A process that was needed is dead, or is dying after it was killed for being hung.

        ``what`` says how in a few words, ``ending`` what it wrote last.
        """
        name, now = child.name, time.monotonic()
        restart = self._restarts.get(name)
        if restart is not None and restart.failure is not None:
            self._lose(name, restart.failure)
            return
        budget = self._budgets[name]
        delay = budget.death(now)
        most, seconds = self._policy.max_restarts, self._policy.window
        if delay is None:
            if most:
                what += f", after {most} restarts within {seconds:g} s"
            self._lose(name, what + ending)
            return
        fallen = self._groups.falls_with(name)
        when = f"in {delay:g} s" if delay else "now"
        others = f" together with {', '.join(fallen[1:])}" if len(fallen) > 1 else ""
        count = f"restart {budget.restarts} of at most {most} within {seconds:g} s"
        self._say(f"{what}; it is started again {when}{others} ({count}){ending}")
        generations = self._processes.generations
        for member in fallen:
            generations[member] += 1
        # At once, so that nobody waits for anything from the dead.
        for receiver, subject in self._groups.notices(name):
            cause = "" if subject == name else name
            notice = Restarting(subject, generations[subject], budget.left, cause)
            self._processes.send(self._processes[receiver], notice)
        self._replace(fallen, now, now + delay)

    def _replace(self, fallen: tuple[str, ...], now: float, due: float) -> None:
        """Kills all of a group, to be started again when they are gone and their time has come."""
        doomed = tuple(self._processes[member] for member in fallen)
        for child in doomed:
            child.kill()
            earlier = self._restarts.get(child.name)
            waiting = earlier is not None and not earlier.started
            self._restarts[child.name] = Restart(
                child.name,
                died=now if earlier is None else earlier.died,
                due=max(due, earlier.due) if earlier is not None and waiting else due,
                doomed=doomed,
                deadline=now + self._timeouts.reap,
            )

    def act(self) -> None:
        """Starts what may start, and gives up what has been starting, or dying, for too long."""
        for name in list(self._restarts):
            if name in self._restarts:  # giving up one clears all
                self._act(self._restarts[name])

    def _act(self, restart: Restart) -> None:
        name, now = restart.name, time.monotonic()
        if restart.started:
            if now >= restart.deadline:
                self._processes[name].kill()
                seconds = f"{self._timeouts.start:g} s"
                silent = f"{name} showed no progress for {seconds} of starting again"
                self._lose(name, restart.failure or silent)
            return
        dying = [child for child in restart.doomed if child.alive]
        if dying:
            if now >= restart.deadline:
                self._lose(name, f"process {dying[0].pid} ({dying[0].name}) cannot be killed")
            return
        if now < restart.due:
            restart.deadline = restart.due
            return
        try:
            self._processes.start(name)
        except OSError as error:
            self._lose(name, f"{name} could not be started again: {error}")
            return
        restart.started = True
        restart.deadline = now + self._timeouts.start

    def progressed(self) -> None:
        """Some process has shown progress: nobody that waits for it is late."""
        for restart in self._restarts.values():
            if restart.started and restart.failure is None:
                restart.deadline = time.monotonic() + self._timeouts.start

    def failed(self, child: Child, message: str) -> None:
        """A process says that it cannot start again. It is judged when it has ended, since the
        reason may be another death that has not been noticed yet."""
        restart = self._restarts.get(child.name)
        if restart is not None and restart.started:
            restart.failure = f"{child.name} could not start again: {message}"
            restart.deadline = time.monotonic() + self._timeouts.failed_stop

    def ready(self, child: Child) -> bool:
        """A process is ready; whether that ends its restart."""
        restart = self._restarts.get(child.name)
        if restart is None or not restart.started:
            return False
        del self._restarts[child.name]
        self._say(f"{child.name} serves again after {time.monotonic() - restart.died:.1f} s")
        return True

    def clear(self) -> None:
        """Nothing is started again from now on."""
        self._restarts.clear()
