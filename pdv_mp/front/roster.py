"""Which of the server's processes are there, as far as the front is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from pdv_mp.front.replicas import Replica
from pdv_mp.topology import POOLS, Topology
from pdv_mp.topology_rows import FRONT


class Roster:
    """Process ids by name, and the names of those that died and are not back.

    The supervisor says who died. The workers with a scheduler say who is there: in the facts of
    their start, and whenever they are asked.
    """

    def __init__(
        self, topology: Topology, replicas: Sequence[Replica], beside: Collection[str] = ()
    ) -> None:
        """``beside``: the processes besides the topology's, of which only deaths are known."""
        self._topology = topology
        self._beside = beside
        self.processes: dict[str, int] = {}
        self._away: dict[str, int | None] = {}
        replaced = [name for name in topology.process_names if name != FRONT]
        self.restarts_of: Counter[str] = Counter(dict.fromkeys([*replaced, *beside], 0))
        for replica in replicas:
            self.processes.update(replica.facts.get("processes", {}))

    @property
    def restarts(self) -> int:
        """How often a process has died and was to be started again."""
        return self.restarts_of.total()

    @property
    def away(self) -> list[str]:
        """Names of the processes that are being replaced."""
        return sorted(self._away)

    def died(self, name: str, cause: str = "") -> None:
        """A process died, and with one that holds a scheduler all workers of its replica. Where
        the death of another was the ``cause``, that one's counts."""
        if not cause:
            self.restarts_of[name] += 1
        if name in self._beside:
            return
        for gone in self._gone_with(name):
            pid = self.processes.pop(gone, None)
            self._away.setdefault(gone, pid)

    def _gone_with(self, name: str) -> Iterable[str]:
        if name not in self._topology.scheduler_names:
            return (name,)
        _, replica = self._topology.place(name)
        return (f"{worker.name}-{replica}" for worker in self._topology.workers)

    def restarted(self, replica: Replica) -> None:
        """A replica serves again: its workers are there, and what they need."""
        for worker in self._topology.workers:
            self._away.pop(f"{worker.name}-{replica.number}", None)
        self._away.pop(POOLS, None)
        self.processes.update(replica.facts.get("processes", {}))

    def seen(self, processes: Mapping[str, int]) -> None:
        """A scheduler's worker says who is there. It may not know yet who died."""
        for name, pid in processes.items():
            if name not in self._away or self._away[name] != pid:
                self._away.pop(name, None)
                self.processes[name] = pid
