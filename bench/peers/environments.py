"""One virtual environment for each peer, made on request."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.peers.errors import PeerError
from bench.peers.programs.peer import Peer

INSTALL_SECONDS = 1800.0
STAMP = ".installed"
"""In an environment that is whole: the requirements that it was made for."""


def python_of(peer: Peer, folder: Path) -> str:
    """The interpreter that runs a peer's program. Raises PeerError if it is not installed."""
    if not peer.requirements:
        return sys.executable
    if not is_installed(peer, folder):
        raise PeerError(f"not installed; `pdv-bench peers --setup --engines {peer.name}` does it")
    return str(_python(folder / peer.name))


def is_installed(peer: Peer, folder: Path) -> bool:
    """Whether its environment is there, for the requirements that it has now."""
    stamp = folder / peer.name / STAMP
    try:
        return not peer.requirements or stamp.read_text("utf-8") == _stamp(peer)
    except OSError:
        return False


def install(
    peer: Peer, folder: Path, pip_options: Sequence[str], say: Callable[[str], object]
) -> None:
    """Makes its environment, anew if there is a part of one.

    ``pip_options``: for ``pip install``, such as ``--extra-index-url=…`` of an index with CPU
    builds of torch. Raises PeerError with pip's last words.
    """
    if is_installed(peer, folder):
        say(f"{peer.name}: is installed")
        return
    place = folder / peer.name
    say(f"{peer.name}: pip install {' '.join(peer.requirements)}")
    try:
        shutil.rmtree(place, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "venv", str(place)])
        pip = [str(_python(place)), "-m", "pip", "--disable-pip-version-check"]
        _run([*pip, "install", "--quiet", *pip_options, *peer.requirements])
        if peer.removed:
            _run([*pip, "uninstall", "--quiet", "--yes", *peer.removed])
        (place / STAMP).write_text(_stamp(peer), "utf-8")
    except OSError as error:
        raise PeerError(f"cannot be installed: {error}") from error


def _python(place: Path) -> Path:
    return place / "bin" / "python"


def _stamp(peer: Peer) -> str:
    removed = [f"without {name}" for name in peer.removed]
    return "\n".join([*peer.requirements, *removed]) + "\n"


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"cannot be installed: no end within {INSTALL_SECONDS:g} s") from error
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
        said = (lines or done.stdout.splitlines() or ["pip said nothing"])[-1]
        raise PeerError(f"cannot be installed: {said.removeprefix('ERROR: ')}")
