"""The worked examples as a `UsageSource` in memory, with the specification's own answers, and how to compare with them."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.periods import Period

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
COUNTS = ("input_tokens", "output_tokens", "request_count", "success_count", "error_count", "total_latency_ms")
NAMES = ("provider", "model", "model_family", "request_type", "feature", "environment")


@dataclass(frozen=True)
class Golden:
    """A worked example: its rows, its case, what the specification's services answer for it."""

    name: str
    usage: RecordedUsage
    case: Mapping[str, Any]
    expected: Mapping[str, Any]

    @property
    def period(self) -> Period:
        return Period(datetime.fromisoformat(self.case["start"]), datetime.fromisoformat(self.case["end"]))

    @property
    def previous(self) -> Period:
        return Period(datetime.fromisoformat(self.case["prevStart"]), datetime.fromisoformat(self.case["prevEnd"]))

    def answer(self, key: str) -> Any:
        """The expectation under a key, or a skip where the example has none."""
        if key not in self.expected:
            pytest.skip(f"{self.name} has no {key}")
        return self.expected[key]


@cache
def golden_case(name: str) -> Golden:
    folder = GOLDEN / name
    with gzip.open(folder / "rows.csv.gz", "rt") as file:
        lines = [
            usage_row(
                datetime.fromisoformat(line["timestamp"]), cached_tokens=int(line["cached_input_tokens"]), cache_creation_tokens=None,
                estimated_cost=Decimal(line["estimated_cost"]), api_key=line["api_key_id"], user=line["user_id"],
                **{column: int(line[column]) for column in COUNTS}, **{column: line[column] or None for column in NAMES},
            )
            for line in csv.DictReader(file)
        ]  # fmt: skip
    case, expected = (json.loads((folder / f"{part}.json").read_text()) for part in ("case", "expected"))
    return Golden(name, RecordedUsage.of(lines), case, expected)


def assert_equal(found: Any, expected: Any, where: str = "") -> None:
    """`found` (already as JSON) has everything that `expected` has: counts and names exactly, numbers to 1e-9, money as floats.

    A list is compared item by item, in order; an object may have more keys than the expectation.
    """
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert key in found, f"{where}: {key} is missing"
            assert_equal(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), f"{where}: {len(found)} items, expected {len(expected)}"
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{where}[{place}]")
    elif isinstance(expected, bool) or expected is None or isinstance(expected, str):
        if (
            isinstance(expected, str)
            and isinstance(found, str)
            and len(expected) > 10
            and expected[4:5] == "-"
            and "T" in expected
        ):
            assert datetime.fromisoformat(found) == datetime.fromisoformat(expected), f"{where}: {found} is not {expected}"
            return
        assert found == expected, f"{where}: {found!r} is not {expected!r}"
    else:
        assert found == pytest.approx(expected, rel=1e-9), f"{where}: {found!r} is not {expected!r}"
