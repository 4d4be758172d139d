"""The error of everything that can be wrong with a model folder."""

from __future__ import annotations


class ModelError(ValueError):
    """A checkpoint that cannot be served; the text is one sentence meant for the user."""


class UnsupportedModelError(ModelError):
    """Our own forward pass does not know this architecture or one of its settings."""
