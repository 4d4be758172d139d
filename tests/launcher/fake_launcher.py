"""Runs the real supervisor over fake children; prints each ready report as one line of JSON.

fake_launcher.py '{"children": {"front": "serve", "worker-0": "serve,crash"}, "timeouts": {…}}'

A child's behaviours are those of its generations, the last one of all later ones.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from launcher.child import ChildSpec
from launcher.output import write_line
from launcher.restarts import RestartPolicy
from launcher.run_directory import RunDirectory
from launcher.signals import SignalFlags
from launcher.supervisor import WATCHED_SIGNALS, ReadyReport, Supervisor, Timeouts

CHILD = Path(__file__).with_name("fake_child.py")


def main(plan: dict) -> int:
    run_directory = RunDirectory()
    path = str(run_directory.path)

    def on_ready(report: ReadyReport) -> None:
        ready = {"pids": dict(report.pids), "facts": dict(report.facts), "run_dir": path}
        print(json.dumps(ready), flush=True)

    def specify(name: str, generation: int) -> ChildSpec:
        behaviours = plan["children"][name].split(",")
        behaviour = behaviours[min(generation, len(behaviours) - 1)]
        command = [sys.executable, str(CHILD), name, path, str(os.getpid()), behaviour]
        return ChildSpec(name, command, os.environ)

    with SignalFlags(WATCHED_SIGNALS) as signals:
        try:
            return Supervisor(
                run_directory.path,
                list(plan["children"]),
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
