"""How the compiled kernels come to be, and what happens where they cannot."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pdv_mp.model.native import library
from pdv_mp.model.native.library import NativeError, native_library


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def counting_compiler(tmp_path: Path) -> Path:
    """A compiler that writes a line for each of its calls."""
    real = library._compiler()
    return script(tmp_path / "counting", f'echo call >> {tmp_path}/calls\nexec {real} "$@"')


def test_two_processes_compile_once_and_others_find_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(counting_compiler(tmp_path)))
    code = (
        "import torch\nfrom pdv_mp.model.native.library import native_library\n"
        "print('lanes', native_library(print).lanes)"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert all("lanes" in text for text in said)
    assert sum("compiling kernels" in text for text in said) == 1
    assert len((tmp_path / "calls").read_text().splitlines()) == 2, "compiled and linked"
    told: list[str] = []
    assert native_library(told.append).lanes in (4, 8, 16)
    assert told == []
    left = sorted(path.suffix for path in (tmp_path / "cache" / "pdv_mp").iterdir())
    assert left == [".lock", ".so"]


def test_without_a_compiler_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NativeError, match=r"there is no C\+\+ compiler"):
        native_library()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NativeError, match="CXX names, no-such-compiler, is not there"):
        native_library()


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = script(tmp_path / "failing", "echo 'forward.cpp:1: error: no luck' >&2; exit 1")
    monkeypatch.setenv("CXX", str(failing))
    with pytest.raises(NativeError, match=r"cannot compile the kernels: .*no luck"):
        native_library()
    assert [path.suffix for path in (tmp_path / "cache" / "pdv_mp").iterdir()] == [".lock"]


def test_kernels_are_not_loaded_from_where_others_may_write(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "pdv_mp"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(NativeError, match="others may write"):
        native_library()


def test_the_folder_is_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(script(tmp_path / "failing", "exit 1")))
    with pytest.raises(NativeError):
        native_library()
    mode = os.stat(tmp_path / "cache" / "pdv_mp").st_mode
    assert stat.S_IMODE(mode) == 0o700
