"""Facts on the machine and the programs of a run, nothing secret among them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("pdv-mp", "torch", "transformers", "tokenizers", "numpy", "pyzmq", "msgpack")
MEASURED = ("pdv_mp", "launcher", "bench/load", "bench/peers/programs")
"""What a measurement depends on: the server, its clients, and the programs that run peers."""

SOURCES = ("*.py", "*.cpp")

ROOT = Path(__file__).resolve().parents[2]
REDACTED = "(redacted)"

_VARIABLES = re.compile(r"(PDV|OMP|MKL|GOMP|KMP|OPENBLAS|CUDA|NVIDIA|TORCH|PYTORCH|HF_HUB)_.*")
_SECRET = re.compile(r"(token|secret|password|credential|api.?key)(?!s|.?file)", re.IGNORECASE)
_GIT_SECONDS = 20


def environment() -> dict[str, Any]:
    """``versions``, ``source``, ``machine``: equal for two runs that may be put together;
    ``commit``, ``state`` and ``variables``: what else there is to say."""
    return {
        "versions": versions(),
        "source": source_digest(),
        "machine": machine(),
        "commit": commit(),
        "state": state(),
        "variables": variables(os.environ),
    }


def versions() -> dict[str, str | None]:
    """Of the interpreter and of the packages that matter; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def source_digest(root: Path = ROOT) -> str:
    """SHA-256 of the sources of :data:`MEASURED`, whatever git knows of them."""
    digest = hashlib.sha256()
    for package in MEASURED:
        paths = [path for suffix in SOURCES for path in (root / package).rglob(suffix)]
        for path in sorted(paths):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


def commit(root: Path = ROOT) -> dict[str, Any] | None:
    """The commit of a checkout, and whether its files differ from it; None outside of one.

    Only the program's files count, not the tests' or the documents'.
    """
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return None
    changed = _git(root, "status", "--porcelain", "--", "pdv_mp", "launcher", "bench")
    return {"id": head.strip(), "dirty": None if changed is None else bool(changed.strip())}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "--no-optional-locks", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def machine() -> dict[str, Any]:
    """What stays the same from run to run. ``cores``: physical ones; ``usable``: those, hardware
    threads counted, that this process may run on."""
    gpus, driver = _gpus()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "usable": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus,
        "driver": driver,
    }


def _cpu_model() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or None


def _gpus() -> tuple[list[dict[str, Any]], str | None]:
    """By NVML; none without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return [], None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        gpus = [
            {
                "name": str(pynvml.nvmlDeviceGetName(handle)),
                "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
            }
            for handle in handles
        ]
        return gpus, str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return [], None
    finally:
        pynvml.nvmlShutdown()


def state() -> dict[str, Any]:
    """What other programs leave: the machine's load and free memory at the start."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "memory_available_bytes": psutil.virtual_memory().available,
        "kernel": platform.release(),
        "governor": governor.read_text(encoding="ascii").strip() if governor.exists() else None,
    }


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that the server, its kernels and the hub's library read."""
    return {
        name: REDACTED if _SECRET.search(name) else value
        for name, value in sorted(environment.items())
        if _VARIABLES.fullmatch(name)
    }


def command_line(arguments: Sequence[str]) -> list[str]:
    """The command as it was given, without the folder of the program and without secrets."""
    program, *rest = arguments
    name = Path(program).name
    found = ["pdv-bench" if name == "cli.py" else name]
    secret = False
    for text in rest:
        name, equals, _ = text.rpartition("=")
        if secret:
            found.append(REDACTED)
        else:
            found.append(f"{name}={REDACTED}" if equals and _SECRET.search(name) else text)
        secret = not equals and text.startswith("--") and bool(_SECRET.search(text))
    return found
