"""The entry point of second processes: ``python -m bench.gpu_facts.peer ROLE ENDPOINT PARENT``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import zmq

from bench.gpu_facts import hop, ipc, machine, overlap, slicing
from bench.gpu_facts.peers import Talk
from pdv_mp.process import die_with_parent

ROLES: dict[str, Callable[[Talk], None]] = {
    "context": machine.context_peer,
    "importer": ipc.importer_peer,
    "owner": ipc.owner_peer,
    "hop": hop.hop_peer,
    "steps": overlap.steps_peer,
    "busy": slicing.busy_peer,
    "short": slicing.short_peer,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve in one role until the other end says stop; 1 after a failure, which it is told."""
    role, endpoint, parent = sys.argv[1:] if arguments is None else arguments
    die_with_parent(int(parent))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.setsockopt(zmq.LINGER, 2000)
    socket.connect(endpoint)
    talk = Talk(socket)
    try:
        ROLES[role](talk)
    except Exception as error:  # noqa: BLE001 - it is told to the process that wants the result
        talk.send(error=f"{type(error).__name__} in the peer {role}: {error}")
        return 1
    finally:
        socket.close()
        context.term()
    return 0


if __name__ == "__main__":
    sys.exit(main())
