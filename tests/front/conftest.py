"""Fixtures around a front that runs in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from front.front_harness import FrontUnderTest, small_tokenizer
from tokenizers import Tokenizer

from pdv_mp.front.text import TextCodec


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as far as the front needs one."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def codec(model_folder: Path) -> TextCodec:
    return TextCodec(model_folder)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No thread may outlive a test."""
    before = set(threading.enumerate())
    yield
    left = [thread for thread in set(threading.enumerate()) - before if not thread.daemon]
    assert not left


@pytest.fixture
def make_front(model_folder: Path) -> Iterator[Callable[..., FrontUnderTest]]:
    """Makes fronts that have not been told that the engine is ready."""
    made: list[FrontUnderTest] = []

    def make(**options: Any) -> FrontUnderTest:
        made.append(FrontUnderTest(model_folder, **options))
        return made[-1]

    yield make
    for item in made:
        item.close()


@pytest.fixture
def front(make_front: Callable[..., FrontUnderTest]) -> FrontUnderTest:
    """A front that serves, with four credits."""
    return make_front().start()
