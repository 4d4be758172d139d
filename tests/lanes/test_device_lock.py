"""The lock of an exclusive device: one holder, and none when it dies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pdv_mp.config import EngineConfig
from pdv_mp.lanes.device_lock import DeviceLock, NoLock, device_lock

HOLDER = """
import sys, time
from pathlib import Path
from pdv_mp.lanes.device_lock import DeviceLock
with DeviceLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_dead_holder_frees_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        other = subprocess.run(
            ["flock", "--nonblock", str(path), "true"], check=False, capture_output=True
        )
        assert other.returncode == 1, "two hold it at once"
        holder.kill()
    lock = DeviceLock(path)
    with lock:
        pass
    lock.close()


def test_only_who_asks_for_it_gets_one(tmp_path: Path) -> None:
    config = EngineConfig()
    assert isinstance(device_lock(config, tmp_path), NoLock)
    exclusive = device_lock(EngineConfig.from_options(exclusive_device=True), tmp_path)
    assert isinstance(exclusive, DeviceLock)
    exclusive.close()
