"""What ``pdv-launch`` says to its user."""

from __future__ import annotations

import contextlib
import sys

PROGRAM = "pdv-launch"
PREFIX = f"{PROGRAM}: "
"""Begins each line of our own; the others are the children's, with their names before them."""


def write_line(line: str) -> None:
    """A line to stderr; that its reader went away must not end the server."""
    with contextlib.suppress(OSError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def say(message: str) -> None:
    """One message of ours to the user."""
    write_line(PREFIX + message)
