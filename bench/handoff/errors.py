"""What stops a measurement."""

from __future__ import annotations


class HandoffError(RuntimeError):
    """Nothing can be said of what was measured; the message says why."""
