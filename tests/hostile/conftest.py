"""One server of the tiny pair for all attacks of a test file, checked after each and at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hostile.attacked import MOST_GROWTH, Attacked
from server_process import ServerProcess


@pytest.fixture(scope="module")
def attacked_server(tiny_server: ServerProcess) -> Iterator[Attacked]:
    """The server; at the end no process may have grown much."""
    attacked = Attacked(tiny_server)
    yield attacked
    growth = attacked.growth()
    attacked.close()
    assert max(growth.values()) < MOST_GROWTH, growth


@pytest.fixture
def attacked(attacked_server: Attacked) -> Iterator[Attacked]:
    """The server; after the test it must be idle and serve."""
    yield attacked_server
    attacked_server.leave()
    attacked_server.check()
