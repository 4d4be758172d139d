"""Runs the real supervisor over fake children; prints each ready report as one line of JSON.

fake_launcher.py '{"children": {"front": "serve", "worker-0": "serve,crash"}, "timeouts": {…}}'

A child's behaviours are those of its generations, the last one of all later ones. ``topology`` is
the name of a row, or a row as ``dataclasses.asdict`` gives it; a child without a behaviour serves.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from launcher.child import ChildSpec
from launcher.output import write_line
from launcher.phases import Timeouts
from launcher.restarts import RestartPolicy
from launcher.run_directory import RunDirectory
from launcher.signals import SignalFlags
from launcher.supervisor import WATCHED_SIGNALS, ReadyReport, Supervisor
from pdv_mp.topology import Topology
from pdv_mp.topology import topology as named

CHILD = Path(__file__).with_name("fake_child.py")


def main(plan: dict) -> int:
    run_directory = RunDirectory()
    path = str(run_directory.path)
    row = plan.get("topology", "unified")
    topology = named(row) if isinstance(row, str) else Topology.from_dict(row)

    def on_ready(report: ReadyReport) -> None:
        ready = {"pids": dict(report.pids), "facts": dict(report.facts), "run_dir": path}
        print(json.dumps(ready), flush=True)

    def specify(name: str, generations: Mapping[str, int]) -> ChildSpec:
        behaviours = plan["children"].get(name, "serve").split(",")
        behaviour = behaviours[min(generations[name], len(behaviours) - 1)]
        command = [
            *(sys.executable, str(CHILD), name, path, str(os.getpid()), behaviour),
            json.dumps(generations),
        ]
        return ChildSpec(name, command, os.environ)

    with SignalFlags(WATCHED_SIGNALS) as signals:
        try:
            return Supervisor(
                run_directory.path,
                topology,
                specify,
                signals,
                on_ready=on_ready,
                on_restarted=on_ready,
                report=write_line,
                timeouts=Timeouts(**plan.get("timeouts", {})),
                restarts=RestartPolicy(**plan.get("restarts", {})),
                parent_fd=plan.get("parent_fd"),
            ).run()
        finally:
            run_directory.remove()


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
