"""The kernels in Triton's interpreter; collected by test_triton_kernels.py alone, in a process that
has TRITON_INTERPRET set before triton is imported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from triton.runtime import interpreter
from triton_checks import FAMILIES, Case, cases, check_attention, check_forward

_create_dot = interpreter.InterpreterBuilder.create_dot


def _wide(handle: Any) -> Any:
    """The interpreter keeps bfloat16 as integers, and multiplies them as such."""
    if handle.data.dtype != np.uint16:
        return handle
    data = (handle.data.astype(np.uint32) << 16).view(np.float32)
    return type(handle)(data, interpreter.tl.float32)


def _dot(self: Any, a: Any, b: Any, *rest: Any, **keywords: Any) -> Any:
    return _create_dot(self, _wide(a), _wide(b), *rest, **keywords)


interpreter.InterpreterBuilder.create_dot = _dot


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases(head_dims=(16, 24, 64, 128), longest=90))
@example(Case(((150, 1), (0, 40)), 1, 4, 128, 16, None, torch.float32, 1))
@example(Case(((0, 1), (140, 5)), 2, 8, 64, 16, 3, torch.bfloat16, 2))
def test_attention(case: Case) -> None:
    check_attention(case, "cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_forward(family: str) -> None:
    check_forward(family, torch.float32, "cpu")
