"""Kinds of messages can be told apart by their numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from pdv_mp.wire.frames import FrameCodec


@dataclass
class One:
    kind: ClassVar[int] = 7


@dataclass
class Other:
    kind: ClassVar[int] = 7


def test_two_kinds_with_one_number_are_refused() -> None:
    with pytest.raises(ValueError, match="Other has the number of One, 7"):
        FrameCodec((One, Other))
