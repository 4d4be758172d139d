"""A child without a role: says what the supervisor tells it, and behaves as its test asks.

fake_child.py NAME RUN_DIR PARENT_PID BEHAVIOUR GENERATIONS
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from pdv_mp.process import SUPERVISED_SIGNALS, die_with_parent


def main(name: str, run_dir: Path, parent_pid: int, behaviour: str, generations: str) -> int:
    die_with_parent(parent_pid)
    from pdv_mp.control import ControlClient
    from pdv_mp.wire.control import (
        Abort,
        Bye,
        Drain,
        Drained,
        Failed,
        Lost,
        Ready,
        Restarting,
        Stop,
    )

    for number in SUPERVISED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SUPERVISED_SIGNALS)
    if behaviour == "crash":
        print("the roof is on fire", file=sys.stderr)
        return 7
    if behaviour == "mute":
        signal.pause()
    if behaviour.startswith("late-"):
        print("late", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        behaviour = behaviour.removeprefix("late-")
    control = ControlClient(run_dir, name)
    if behaviour == "fail":
        control.finish(Failed(name, "there is no disk left", 3))
        return 3
    if behaviour == "fail-and-stay":
        control.send(Failed(name, "there is no disk left", 3))
        signal.pause()
    if behaviour == "slow-start":
        control.progress("counting to infinity")
        signal.pause()
    control.send(Ready(name, {"fact": name, "generations": json.loads(generations)}))
    if behaviour == "deaf":
        signal.pause()
    if behaviour == "compute":
        end = time.monotonic() + 6
        while time.monotonic() < end:
            pass
        print("computed", flush=True)
    while True:
        control.socket.poll()
        while (message := control.receive()) is not None:
            about = ""
            if isinstance(message, Restarting):
                about = f" {message.name} {message.generation} {message.restarts_left}"
                about += f" {message.cause}" if message.cause else ""
            print(f"told to {type(message).__name__}{about}", flush=True)
            if isinstance(message, Stop):
                control.finish(Bye(name))
                return 9 if behaviour == "bad-exit" else 0
            answers = isinstance(message, (Abort, Lost)) or behaviour != "busy"
            if isinstance(message, (Drain, Abort, Lost)) and answers:
                control.send(Drained())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:6]))
