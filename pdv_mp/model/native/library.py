"""The compiled kernels: built once for this machine by its own C++ compiler, kept in a cache."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import POINTER, Structure, c_float, c_int64, c_void_p
from pathlib import Path

SOURCE = Path(__file__).with_name("forward.cpp")
COMPILERS = ("g++", "c++")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fno-math-errno", "-fopenmp", "-Wall")
COMPILE_SECONDS = 300


class NativeError(Exception):
    """The kernels cannot be had here; one sentence says why."""


class Matrix(Structure):
    """See forward.cpp, as for all structures here."""

    _fields_ = (
        ("panels", c_void_p),
        ("bias", c_void_p),
        ("outputs", c_int64),
        ("inputs", c_int64),
    )


class Layer(Structure):
    _fields_ = (
        ("qkv", Matrix),
        ("o", Matrix),
        ("gate_up", Matrix),
        ("down", Matrix),
        ("qk_norm", c_void_p),
    )


class Model(Structure):
    _fields_ = (
        ("embedding", c_void_p),
        ("rotations", c_void_p),
        ("layers", POINTER(Layer)),
        ("lm_head", Matrix),
        ("hidden", c_int64),
        ("num_layers", c_int64),
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_dim", c_int64),
        ("width", c_int64),
        ("eps", c_float),
    )


class Cache(Structure):
    _fields_ = (
        ("base", c_void_p),
        ("unit_tokens", c_int64),
        ("unit", c_int64),
        ("layer", c_int64),
        ("value", c_int64),
        ("head", c_int64),
        ("position", c_int64),
    )


class Batch(Structure):
    _fields_ = (
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("query_lens", c_void_p),
        ("table", c_void_p),
        ("logit_rows", c_void_p),
        ("rows", c_int64),
        ("sequences", c_int64),
        ("units", c_int64),
        ("wanted", c_int64),
    )


class Choice(Structure):
    _fields_ = (
        ("ids", c_void_p),
        ("vocab_size", c_int64),
        ("accepted", c_void_p),
        ("next_ids", c_void_p),
    )


class Drafts(Structure):
    _fields_ = (
        ("lengths", c_void_p),
        ("ids", c_void_p),
        ("width", c_int64),
        ("vocab_size", c_int64),
    )


PHASES = ("embed", "norm", "qkv", "rotate", "attend", "out", "gate_up", "down", "head")
"""What the time of a forward pass is accounted to, in the order of forward.cpp. The norms of a few
rows belong to the product that follows, and rotation to attention where one task does both."""


class NativeLibrary:
    """The functions of forward.cpp."""

    def __init__(self, path: Path) -> None:
        """Raises NativeError for a file that this process cannot load."""
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise NativeError(f"the compiled kernels cannot be loaded: {error}") from None
        library.pdv_lanes.restype = c_int64
        library.pdv_workspace.restype = c_int64
        library.pdv_workspace.argtypes = (POINTER(Model), c_int64, c_int64, c_int64, c_int64)
        library.pdv_forward.restype = None
        library.pdv_forward.argtypes = (
            POINTER(Model),
            POINTER(Cache),
            POINTER(Batch),
            c_void_p,
            c_int64,
            c_void_p,
            POINTER(Choice),
            c_int64,
            c_void_p,
        )
        library.pdv_draft_workspace.restype = c_int64
        library.pdv_draft_workspace.argtypes = (POINTER(Model), c_int64, c_int64)
        library.pdv_draft.restype = None
        library.pdv_draft.argtypes = (
            POINTER(Model),
            POINTER(Cache),
            POINTER(Batch),
            POINTER(Drafts),
            c_void_p,
            c_int64,
            c_int64,
            c_void_p,
        )
        self.path = path
        self.workspace: Callable[..., int] = library.pdv_workspace
        self.forward: Callable[..., None] = library.pdv_forward
        self.draft_workspace: Callable[..., int] = library.pdv_draft_workspace
        self.draft: Callable[..., None] = library.pdv_draft
        self.lanes: int = library.pdv_lanes()


_loaded: dict[Path, NativeLibrary] = {}


def native_library(progress: Callable[[str], None] | None = None) -> NativeLibrary:
    """The kernels, compiled if the cache does not have them, which ``progress`` is told of before.

    Raises NativeError where there is no compiler, no folder to keep the result in, or where the
    compiler fails.
    """
    compiler = _compiler()
    runtime = _openmp_runtime()
    path = _cache_folder() / f"forward-{_digest(compiler, runtime)}.so"
    if not path.exists():
        with _locked(path.with_suffix(".lock")):
            if not path.exists():
                if progress is not None:
                    progress(f"compiling kernels for this CPU with {compiler}, once")
                _compile(compiler, runtime, path)
    if path not in _loaded:
        _loaded[path] = NativeLibrary(path)
    return _loaded[path]


def _compiler() -> str:
    named = os.environ.get("CXX")
    for name in (named,) if named else COMPILERS:
        found = shutil.which(name)
        if found is not None:
            return found
    if named:
        raise NativeError(f"the compiler that CXX names, {named}, is not there")
    raise NativeError(f"there is no C++ compiler ({' or '.join(COMPILERS)})")


def _openmp_runtime() -> Path | None:
    """The OpenMP library that torch has loaded: two in a process would fight for the cores."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith(("libgomp", "libiomp5", "libomp")):
            return Path(path)
    return None


def _cache_folder() -> Path:
    """``$XDG_CACHE_HOME/pdv_mp``: nobody else may write where code is loaded from."""
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "pdv_mp"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError) as error:
        raise NativeError(f"there is no folder for compiled kernels: {error}") from None
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NativeError(f"others may write to {folder}, so kernels are not loaded from there")
    return folder


def _digest(compiler: str, runtime: Path | None) -> str:
    """Of all that the result depends on."""
    status = os.stat(compiler)
    parts = (
        SOURCE.read_text(encoding="utf-8"),
        " ".join(FLAGS),
        f"{compiler} {status.st_size} {status.st_mtime_ns}",
        str(runtime),
        platform.machine(),
        _cpu_features(),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _cpu_features() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    return line
    except OSError:
        pass
    return platform.processor()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock, which ends with the process if nothing else ends it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _compile(compiler: str, runtime: Path | None, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        code, made = Path(folder) / "forward.o", Path(folder) / "forward.so"
        _run([compiler, *FLAGS, "-c", str(SOURCE), "-o", str(code)])
        link = [compiler, "-shared", str(code), "-o", str(made)]
        if runtime is None:
            link.append("-fopenmp")
        else:
            link += [str(runtime), f"-Wl,-rpath,{runtime.parent}"]
        _run(link)
        os.replace(made, path)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeError(f"{command[0]} cannot compile the kernels: {error}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        why = next((line for line in lines if "error" in line), lines[-1])
        raise NativeError(f"{command[0]} cannot compile the kernels: {why}")
