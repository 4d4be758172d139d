from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from launcher.run_directory import RunDirectory, run_base, sweep_stale
from pdv_mp.config import ConfigError

HOLDER = """
import signal, sys
from pathlib import Path
from launcher.run_directory import RunDirectory
directory = RunDirectory(Path(sys.argv[1]))
print(directory.path, flush=True)
signal.pause()
"""


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tempfile.mkdtemp(dir=tmp_path_factory.getbasetemp()))


def test_directory_is_private_and_removed_whole(base: Path) -> None:
    directory = RunDirectory(base)
    assert directory.path.parent == base
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    (directory.path / "control").touch()
    directory.remove()
    assert list(base.iterdir()) == []
    directory.remove()


def test_sweep_removes_only_what_a_dead_launcher_left(base: Path) -> None:
    mine = RunDirectory(base)
    stranger = base / "pdv-not-a-server"
    stranger.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(base)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    theirs = Path(holder.stdout.readline().strip())
    assert sweep_stale(base) == []
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert theirs.is_dir()
    assert sweep_stale(base) == [theirs]
    assert not theirs.exists()
    assert mine.path.is_dir()
    assert stranger.is_dir()
    mine.remove()


def test_place_with_too_long_a_name_is_refused(base: Path) -> None:
    deep = base / ("x" * 90)
    deep.mkdir()
    with pytest.raises(ConfigError, match=r"too long a name .* set XDG_RUNTIME_DIR to a shorter"):
        RunDirectory(deep)


def test_missing_place_is_refused(base: Path) -> None:
    with pytest.raises(ConfigError, match="cannot create a folder for sockets"):
        RunDirectory(base / "gone")


def test_runtime_directory_of_the_session_is_preferred(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    assert run_base() == base
    for unusable in ("", "relative", str(base / "gone")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", unusable)
        assert run_base() == Path(tempfile.gettempdir())


def test_a_directory_that_another_sweeper_removes_meanwhile_is_no_error(base: Path) -> None:
    directory = RunDirectory(base)
    os.unlink(directory.path / "lock")
    assert sweep_stale(base) == []
    directory.remove()
