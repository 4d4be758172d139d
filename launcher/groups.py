"""Who goes down with whom, and who is told of it."""

from __future__ import annotations

from collections.abc import Iterator

from pdv_mp.topology_rows import BESIDE, FRONT, POOLS, Topology


class RestartGroups:
    """What a death means for the other processes of a topology.

    A worker without a scheduler holds nothing that outlives an order, and a tokenizer nothing that
    the front could not send again, so each is started again alone; so are the gateway and the
    process of the metrics, of which the others know nothing.
    The scheduler holds the state of its replica: the other workers there would work for requests
    that nobody knows any more. The pools process holds the memory of all workers.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    def falls_with(self, name: str) -> tuple[str, ...]:
        """The processes that must start anew when ``name`` dies, itself the first; for the front,
        which has no successor, all of them."""
        topology = self._topology
        if name == FRONT:
            return topology.process_names
        if name == POOLS:
            return (POOLS, *topology.worker_names)
        if name in BESIDE or name in topology.tokenizer_names:
            return (name,)
        worker, replica = topology.place(name)
        if not worker.schedules:
            return (name,)
        return (name, *(other for other in topology.names_in(replica) if other != name))

    def notices(self, name: str) -> Iterator[tuple[str, str]]:
        """When ``name`` dies: pairs of a process that is told, and of the one it is told about.

        The front hears of it, and of every scheduler that goes with it; the scheduler of a replica
        hears of its workers.
        """
        yield FRONT, name
        fallen = self.falls_with(name)[1:]
        for scheduler in self._topology.scheduler_names:
            if scheduler in fallen:
                yield FRONT, scheduler
        if name in self._topology.worker_names:
            worker, replica = self._topology.place(name)
            if not worker.schedules:
                yield self._topology.scheduler_names[replica], name
