"""Starts an engine's program: ``python start.py NAME PARENT``, by path, in any environment.

The folder is loaded as the package ``programs``. It is not on the path for imports, where its files
would hide the libraries that they are named after.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Serve until the pipe ends."""
    name, parent = sys.argv[1:3]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != int(parent):
            return 1
    folder = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != folder]
    spec = importlib.util.spec_from_file_location(
        "programs", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None  # of a file that is there
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["programs"] = package
    spec.loader.exec_module(package)
    serving = importlib.import_module("programs.serving")
    module = importlib.import_module(f"programs.{name}")
    return int(serving.serve(getattr(module, "PEER", None) or module.JUDGE))


if __name__ == "__main__":
    sys.exit(main())
