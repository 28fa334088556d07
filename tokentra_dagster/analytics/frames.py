"""Columns of a source's frames as Python values."""

from __future__ import annotations

from typing import Any

import pandas as pd

from tokentra_dagster.analytics.results import ratio


def known(frame: pd.DataFrame, column: str) -> list[Any]:
    """A count or the cost of every row; None where it is unknown."""
    return [None if value is pd.NA else value for value in frame[column].tolist()]


def average_latency(total_ms: int | None, requests: int | None) -> int | None:
    """Mean milliseconds over the requests whose latency is known, to the nearest integer (correction 35)."""
    mean = ratio(total_ms, requests)
    return None if mean is None else round(mean)
