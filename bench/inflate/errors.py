"""The error of everything that keeps a stand-in from being made."""

from __future__ import annotations


class InflateError(ValueError):
    """A stand-in that cannot be made as asked; the text is one sentence meant for the user."""
