"""The phases of a server's life, how long each may take, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

EXIT_CLEAN = 0
EXIT_RUNTIME = 1
EXIT_START_FAILED = 3
EXIT_PROCESS_DIED = 4


class Phase(Enum):
    """Where the life of the server stands.

    STARTING -> SERVING -> DRAINING -> ABORTING -> STOPPING
        |          |           |           |          ^
        |          +-----------+-----------+-> LOSING |   a process died for good: the front
        +-----------------------------------------+---+   tells its clients. STARTING ends early
                                                          when a child failed, or on a signal.
    """

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    ABORTING = "aborting"
    LOSING = "losing"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds that each phase may take, and ``answer``: that a process may be silent once ready.

    ``start``: without a sign of progress from any child. ``drain``: until open requests are
    aborted. ``abort``, ``lost``: for the front to answer its clients. ``stop``: for children to
    leave. ``failed_stop``: the same after a failure. ``reap``: for what was killed to be gone.
    ``answer`` may be 0: then nothing is asked.
    """

    start: float = 600.0
    drain: float = 30.0
    abort: float = 5.0
    lost: float = 2.0
    stop: float = 10.0
    failed_stop: float = 2.0
    reap: float = 10.0
    answer: float = 10.0
