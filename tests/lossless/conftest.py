"""Shows what the losslessness tests counted, also when they run in parallel."""

from __future__ import annotations

from collections.abc import Callable

import pytest

KEY = "lossless"


@pytest.fixture
def report_line(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Adds a line to the summary at the end of the run."""
    return lambda line: record_property(KEY, line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [
        str(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for key, value in report.user_properties
        if key == KEY
    ]
    if lines:
        terminalreporter.section("losslessness")
        for line in lines:
            terminalreporter.line(line)
