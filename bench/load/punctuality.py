"""A thread that wakes up when it is to, although others keep all cores busy.

Clients that share a machine with the server would wait for the end of a worker's time slice, which
is milliseconds, before they can send a request or stamp a token; clients on another machine would
not. Under Linux's fair scheduler (EEVDF, from 6.12 on) a thread may ask for shorter slices, which
are sooner due: it then gets the same share of the cores, in smaller pieces. Elsewhere nothing
changes.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import sys
from collections.abc import Iterator

SLICE_NS = 100_000
"""The shortest that the kernel grants."""

_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}
"""Numbers of the system calls sched_setattr and sched_getattr, which libraries hardly wrap."""

_FAIR = (0, 3)
"""SCHED_OTHER and SCHED_BATCH; for the others the field means something else."""


class _Attributes(ctypes.Structure):
    """``struct sched_attr`` of linux/sched/types.h; for a fair thread ``runtime`` is its slice."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def slice_ns() -> int | None:
    """The calling thread's time slice; None where the system does not tell, 0 where it has none of
    its own."""
    found = _attributes()
    return None if found is None else int(found.runtime)


@contextlib.contextmanager
def punctual() -> Iterator[None]:
    """The calling thread has short time slices, if the system grants them, and the process does
    not collect garbage, which would take milliseconds, too."""
    before = _attributes()
    if before is not None:
        _set_slice(before, SLICE_NS)
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
        if before is not None:
            _set_slice(before, int(before.runtime))


def _attributes() -> _Attributes | None:
    calls = _CALLS.get(platform.machine()) if sys.platform == "linux" else None
    if calls is None:
        return None
    found = _Attributes()
    size = ctypes.sizeof(found)
    failed = ctypes.CDLL(None).syscall(calls[1], 0, ctypes.byref(found), size, 0)
    return None if failed or found.policy not in _FAIR else found


def _set_slice(attributes: _Attributes, runtime: int) -> None:
    wanted = _Attributes.from_buffer_copy(attributes)
    wanted.runtime = runtime
    # A kernel that refuses leaves things as they are.
    ctypes.CDLL(None).syscall(_CALLS[platform.machine()][0], 0, ctypes.byref(wanted), 0)
