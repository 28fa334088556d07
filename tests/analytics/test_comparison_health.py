"""Whether a comparison is good news: the summary and its rule (section 11; correction 36)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.comparison import BETTER, compare_usage, health, summarize
from tokentra_dagster.analytics.comparison_metrics import METRICS, Figures, compare_metrics
from tokentra_dagster.analytics.comparison_periods import comparison_periods
from tokentra_dagster.analytics.noise import UsualChange
from tokentra_dagster.analytics.periods import DAY, Period

NOW = datetime(2026, 6, 29, tzinfo=UTC)


def test_one_improvement_alone_does_not_decide():
    """Correction 36: with 1 improvement against 0 regressions the specification says improving."""

    def specification(improvements: int, regressions: int) -> str:
        if improvements > regressions * 2:
            return "improving"
        return "declining" if regressions > improvements * 2 else "stable"

    assert specification(1, 0) == "improving"
    assert health(1, 0) == "stable"


@pytest.mark.parametrize(
    ("improvements", "regressions", "expected"),
    [
        (0, 0, "stable"), (1, 0, "stable"), (0, 1, "stable"), (1, 1, "stable"), (2, 0, "improving"), (0, 2, "declining"),
        (2, 1, "stable"), (1, 2, "stable"), (3, 1, "improving"), (1, 3, "declining"), (2, 2, "stable"), (4, 0, "improving"),
    ],
)  # fmt: skip
def test_health_at_the_edges(improvements, regressions, expected):
    assert health(improvements, regressions) == expected


def test_health_counts_only_metrics_that_have_a_better_direction():
    better = {"error_count": 0, "cached_tokens": 80, "total_latency_ms": 100, "input_tokens": 100}
    worse = {"error_count": 1, "cached_tokens": 20, "total_latency_ms": 300, "input_tokens": 1_000}
    current, previous = Period(NOW - DAY, NOW), Period(NOW - 2 * DAY, NOW - DAY)
    usage = RecordedUsage.of([usage_row(current.start, **better), usage_row(previous.start, **worse)])
    found = compare_usage(usage, comparison_periods("custom", NOW, current, previous))
    assert found.summary.total_metrics_compared == 14
    assert (found.summary.improvements, found.summary.regressions, found.summary.unknown) == (4, 0, 0)
    assert (found.summary.stable, found.summary.overall_health) == (10, "improving")


def test_health_leaves_out_changes_that_are_usual_or_unknown():
    current, previous = (Figures(**dict.fromkeys(METRICS.values(), value)) for value in (120, 100))
    usual = {METRICS[name]: UsualChange("same_comparison", 9, 0.0, 10.0, -30.0, 40.0) for name in BETTER}
    assert summarize(compare_metrics(current, previous)).overall_health == "declining"
    assert summarize(compare_metrics(current, previous, usual)).overall_health == "stable"
    unknown = summarize(compare_metrics(Figures(*[None] * 13, 0), previous))
    assert (unknown.unknown, unknown.improvements, unknown.regressions, unknown.stable) == (13, 0, 0, 1)
