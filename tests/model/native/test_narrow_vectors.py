"""The kernels as other CPUs get them: compiled for narrower vectors, they pass the same tests."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86-64")
@pytest.mark.parametrize(
    ("flags", "lanes"), [("-mno-avx512f", 8), ("-mno-avx512f -mno-avx -mno-fma", 4)]
)
def test_kernels_for_narrower_vectors(tmp_path: Path, flags: str, lanes: int) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\nexec {shutil.which("g++")} "$@" {flags}\n')
    compiler.chmod(0o700)
    environment = {**os.environ, "CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path)}
    code = (
        "import torch, sys, pytest\nfrom pdv_mp.model.native.library import native_library\n"
        f"assert native_library().lanes <= {lanes}\n"
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    tests = [HERE / "test_native_transformer.py", HERE.parent / "test_transformer.py"]
    options = ["-q", "-p", "no:cacheprovider", "-m", "not gpu", "--rootdir", HERE.parents[2]]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, [*options, *tests])],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
