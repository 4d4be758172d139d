"""One measurement in this process: ``python -m bench.gpu_facts.measure NAME FILE PARENT [quick]``.

Its facts go to the file line by line, and so does the error that ends it.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from bench.gpu_facts.facts import Report
from bench.gpu_facts.measurements import MEASUREMENTS
from pdv_mp.process import die_with_parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 1 if that failed."""
    name, path, parent, *rest = sys.argv[1:] if arguments is None else arguments
    die_with_parent(int(parent))
    report = Report(Path(path), quick="quick" in rest)
    try:
        MEASUREMENTS[name].run(report)
    except Exception as error:  # noqa: BLE001 - it is said on the page
        traceback.print_exc()
        report.failed(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
