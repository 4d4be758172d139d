"""The front's end of its edge to a worker that holds a scheduler."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import zmq

from pdv_mp.front.peer_edge import PeerEdge
from pdv_mp.lanes.injected_delay import HeldFrames
from pdv_mp.wire import engine as wire


class EngineEdge(PeerEdge[wire.EngineMessage]):
    """The edge to ``peer``, the worker with the scheduler of ``replica``."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        run_dir: Path,
        generation: int,
        peer: str,
        replica: int = 0,
        held: HeldFrames | None = None,
    ) -> None:
        name = partial(wire.engine_socket, replica=replica)
        super().__init__(context, run_dir, generation, peer, wire.CODEC, name, held)
