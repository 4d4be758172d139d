"""Entry point of every process that the supervisor starts: ``python -m pdv_mp.process NAME …``.

It ties the process's life to its parent's first of all, then connects to the supervisor, reads the
configuration from the run directory and runs the role that NAME stands for. Signals are the
supervisor's business: it tells its children by message what to do.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdv_mp.control import ControlClient

SUPERVISED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that children ignore; the supervisor blocks them while it starts a child."""

CONFIG_FILE = "config.json"
"""File name of the configuration in the run directory."""

READY_FILE = "ready.json"
"""File name, in the run directory, of what ``--ready-file`` says: endpoints, process ids."""

_PR_SET_PDEATHSIG = 1

RunRole = Callable[[str, Path, Mapping[str, int], "ControlClient"], None]
"""Runs a role, given its name, the run directory, everyone's generations and the control client."""


def environment_for_children() -> dict[str, str]:
    """This process's environment, for a child that is started with ``python -m``.

    From Python 3.11 on nothing is imported from the folder that the child is started in, unless
    this package lies there: a user's profile.py or token.py is not what others import by that name.
    """
    package = Path(__file__).resolve().parent.parent
    safe = {} if package == Path.cwd() else {"PYTHONSAFEPATH": "1"}
    return {**os.environ, **safe}


def die_with_parent(parent_pid: int) -> None:
    """Has the kernel kill this process when its parent dies; exits if the parent is gone already.

    The signal follows the parent's *thread*, so the supervisor starts children from its main one.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != parent_pid:
        sys.exit(1)


def main(arguments: Sequence[str] | None = None, run_role: RunRole | None = None) -> int:
    """Runs one role until the supervisor stops it; returns the exit status. ``run_role``: what runs
    it, for a process that is no part of the engine."""
    parser = argparse.ArgumentParser(prog="python -m pdv_mp.process", description=__doc__)
    parser.add_argument("name", help="front, pools, or the name of another, such as worker-0")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument(
        "--generation", type=int, default=0, help="how often this process was started before"
    )
    parser.add_argument(
        "--generations",
        type=_generations,
        default={},
        metavar="JSON",
        help="the generation that each process has at this moment, by name",
    )
    parser.add_argument("--parent-pid", type=int, required=True)
    options = parser.parse_args(arguments)

    die_with_parent(options.parent_pid)
    os.umask(0o077)
    for number in SUPERVISED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SUPERVISED_SIGNALS)
    faulthandler.enable()

    from pdv_mp.control import ControlClient
    from pdv_mp.wire.control import Bye, Failed

    control = ControlClient(options.run_dir, options.name)
    try:
        generations = {**options.generations, options.name: options.generation}
        (run_role or _run_role)(options.name, options.run_dir, generations, control)
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            logging.getLogger(__name__).exception("%s failed", options.name)
        if control.ready_sent:
            control.close()
            return 1
        message = sentence or f"{type(error).__name__}: {error}"
        exit_code = 2 if _is_users_error(error) else 3
        control.finish(Failed(options.name, message, exit_code))
        return exit_code
    control.finish(Bye(options.name))
    return 0


def _generations(text: str) -> dict[str, int]:
    """The value of ``--generations``. Raises ValueError for anything that is not one."""
    values = json.loads(text)
    if not isinstance(values, dict) or not all(type(value) is int for value in values.values()):
        raise ValueError("--generations is not a map of names to whole numbers")
    return values


def _run_role(
    name: str, run_dir: Path, generations: Mapping[str, int], control: ControlClient
) -> None:
    from pdv_mp.config import ConfigError, EngineConfig
    from pdv_mp.topology import FRONT, POOLS, topology_of
    from pdv_mp.topology_rows import METRICS

    config = EngineConfig.from_json((run_dir / CONFIG_FILE).read_text(encoding="utf-8"))
    logging.basicConfig(
        level=config.server.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    row = topology_of(config)
    if name not in (*row.process_names, METRICS):
        raise ConfigError(f"topology {row.name!r} has no process {name!r}")
    if name == FRONT:
        from pdv_mp.front import run_front

        run_front(config, run_dir, control, generations)
    elif name == POOLS:
        from pdv_mp.resources.pools_process import run_pools

        run_pools(config, run_dir, control)
    elif name == METRICS:
        from pdv_mp.metrics.http_server import run_metrics

        run_metrics(config, run_dir, control)
    elif name in row.tokenizer_names:
        from pdv_mp.workers.tokenizer_process import run_tokenizer

        run_tokenizer(config, name, run_dir, control, generations)
    elif row.place(name)[0].schedules:
        from pdv_mp.workers.worker_process import run_worker

        run_worker(config, name, run_dir, control, generations)
    else:
        from pdv_mp.lanes.lane_process import run_lane

        run_lane(config, name, run_dir, control, generations)


def _sentence(error: Exception) -> str | None:
    """What tells the user what to change, if that can be told: then no traceback is needed."""
    if _is_users_error(error):
        return str(error)
    if isinstance(error, OSError):
        from pdv_mp.mapped_file import full_disk

        return full_disk(error)
    return None


def _is_users_error(error: Exception) -> bool:
    """Whether the command line or the configuration is to be changed."""
    from pdv_mp.config import ConfigError
    from pdv_mp.model.errors import ModelError

    return isinstance(error, (ConfigError, ModelError))


if __name__ == "__main__":
    _status = main()
    # An interpreter that has read torch computes for half a second to take itself apart, and all
    # that is not memory has been closed.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_status)
