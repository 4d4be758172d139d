"""What goes wrong with a load."""

from __future__ import annotations


class LoadError(RuntimeError):
    """The server could not serve the load; the message says what it did."""


class WorkloadError(ValueError):
    """What the clients are to ask for cannot be read or served; the message is one sentence that
    names the file and line, or the option."""
