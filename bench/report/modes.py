"""The sources' success and failure modes: where a candidate beats the run's reference, or loses to
it, by more than the noise."""

from __future__ import annotations

from bench.report.summaries import Analysis, Comparison, Verdict


def success_modes(analysis: Analysis) -> list[Comparison]:
    """Candidates that are shown to be ahead of the reference, the largest lead first."""
    return _decided(analysis, "ahead", 1)


def failure_modes(analysis: Analysis) -> list[Comparison]:
    """Candidates that are shown to be behind the reference, the largest lag first."""
    return _decided(analysis, "behind", -1)


def _decided(analysis: Analysis, verdict: Verdict, sign: int) -> list[Comparison]:
    found = [
        (sign * comparison.ratio.estimate, comparison)
        for comparison in analysis.comparisons
        if comparison.reference == analysis.run.reference
        and comparison.verdict == verdict
        and comparison.ratio is not None
    ]
    return [comparison for _, comparison in sorted(found, key=lambda each: each[0], reverse=True)]
