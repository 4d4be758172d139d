"""One step in this process: ``python -m bench.gpu.measure NAME FILE PARENT [quick]``.

Its facts go to the file line by line, and so does the error that ends it.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from bench.gpu.steps import STEPS
from bench.gpu_facts.facts import Report
from pdv_mp.process import die_with_parent


def main() -> int:
    """Run the step; 1 if it failed."""
    name, path, parent, *rest = sys.argv[1:]
    die_with_parent(int(parent))
    report = Report(Path(path), quick="quick" in rest)
    try:
        STEPS[name].run(report)
    except Exception as error:  # noqa: BLE001 - it is said on the page
        traceback.print_exc()
        report.failed(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
