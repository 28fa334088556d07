"""Which analyses there are: what each computes, over which windows, and what the tables of schema `analytics` get of it.

The command line, the Dagster assets and the report all run them from here. A result is a dataclass of `tokentra_dagster.analytics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from tokentra_dagster.analytics import (
    anomalies,
    breakdowns,
    comparison,
    comparison_periods,
    coverage,
    dashboard,
    efficiency,
    forecast,
    model_usage,
    multidimensional,
    patterns,
    savings,
    seasonality,
    trends,
    user_report,
)
from tokentra_dagster.analytics.periods import DAY, Period, last_days, month_of
from tokentra_dagster.analytics.priced_cells import Prices
from tokentra_dagster.analytics.results import InsightRow, MetricRow, RecommendationRow
from tokentra_dagster.analytics.sources import UsageSource

DIMENSIONS = ("provider", "model", "modelFamily", "team", "project", "costCenter", "feature", "environment", "user", "apiKey", "requestType", "serviceType")  # fmt: skip
COMPARED = ("provider", "model", "feature", "team", "project", "environment")
STORED_VALUES = 50
"""Values of a dimension that a stored breakdown names; the rest is one `Other`."""


@dataclass(frozen=True, slots=True)
class Request:
    """What an analysis reads and over which time. `known_until`: what is later is not known yet, so that nothing there is a drop."""

    usage: UsageSource
    period: Period
    known_until: datetime
    prices: Prices
    time_zone: str = "UTC"


def windows_of(day: date) -> dict[str, Period]:
    """The windows that end with a UTC day: 7, 30 and 90 days, and its calendar month up to and with it."""
    month = month_of(day)
    end = month.start + (day.day) * DAY
    return {"7d": last_days(end, 7), "30d": last_days(end, 30), "90d": last_days(end, 90), "month": Period(month.start, end)}
