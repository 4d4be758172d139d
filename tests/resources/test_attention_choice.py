"""What ``--attention`` means on which device."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch

from pdv_mp.config import ConfigError
from pdv_mp.resources.resource_plan import pick_attention

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture
def with_triton(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Triton is, or is not, installed."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = importlib.util.find_spec

    def install(there: bool) -> None:
        def find(name: str, package: str | None = None) -> object:
            return (object() if there else None) if name == "triton" else found(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", find)

    return install


@pytest.mark.parametrize("there", [False, True])
def test_auto_is_triton_on_a_gpu_that_has_it(
    there: bool, with_triton: Callable[[bool], None]
) -> None:
    with_triton(there)
    assert pick_attention("auto", GPU, "paged") == ("triton" if there else "sdpa")
    assert pick_attention("auto", CPU, "paged") == "sdpa"
    assert pick_attention("sdpa", GPU, "paged") == "sdpa"


def test_triton_is_refused_where_it_cannot_run(with_triton: Callable[[bool], None]) -> None:
    with_triton(True)
    assert pick_attention("triton", GPU, "paged") == "triton"
    for layout in ("contiguous", "paged"):
        with pytest.raises(ConfigError, match="--attention triton is for a GPU; use sdpa"):
            pick_attention("triton", CPU, layout)
    with_triton(False)
    with pytest.raises(ConfigError, match="triton is not installed; use sdpa"):
        pick_attention("triton", GPU, "paged")
