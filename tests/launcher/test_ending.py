"""Who is told how the server ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from launcher.ending import Ending
from launcher.phases import Phase, Timeouts
from launcher.processes import Processes
from pdv_mp.control import Abort, Drain


class FakeProcesses(list[Any]):
    """Children that live, and what each was sent."""

    def __init__(self, *names: str) -> None:
        super().__init__(SimpleNamespace(name=name, alive=True) for name in names)
        self.sent: list[tuple[str, object]] = []

    def send(self, child: Any, order: object) -> None:
        self.sent.append((child.name, order))


def test_a_gateway_that_begins_while_the_server_drains_is_told() -> None:
    processes = FakeProcesses("front", "worker-0", "gateway")
    gateway = processes[2]
    ending = Ending(
        cast(Processes, processes), Timeouts(), say=lambda text: None, give_up=lambda: None
    )
    ending.joined(gateway)
    assert processes.sent == []
    ending.enter(Phase.SERVING, 1.0)
    gateway.alive = False  # it has died, and its successor has to wait
    ending.wish("SIGTERM")
    assert processes.sent == [("front", Drain())]
    gateway.alive = True
    ending.joined(gateway)
    ending.joined(processes[1])  # has no clients
    assert processes.sent[1:] == [("gateway", Drain())]
    ending.wish("SIGTERM")
    ending.joined(gateway)
    assert processes.sent[-1] == ("gateway", Abort())
