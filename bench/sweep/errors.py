"""The error of everything that keeps a sweep from being begun as asked."""

from __future__ import annotations


class PlanError(ValueError):
    """A sweep that cannot be measured as asked; the text is one sentence meant for the user."""
