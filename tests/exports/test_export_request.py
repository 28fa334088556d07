"""What can be asked of an export, and what a person is told who asks something else."""

from __future__ import annotations

from typing import Any

import pytest

from tests.exports.export_rows import PERIOD
from tokentra_dagster.errors import UsageError
from tokentra_dagster.exports.request import ExportRequest


def asked(**changes: Any) -> ExportRequest:
    return ExportRequest("acme", PERIOD, **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "xls"}, "The format is 'xls'; it must be one of csv, json, jsonl, parquet, xlsx."),
        ({"granularity": "weekly"}, "The granularity is 'weekly'; it must be one of minute, hour, day, month."),
        ({"format": "xlsx", "compression": "gzip"}, "The compression of xlsx is 'gzip'; it must be none."),
        ({"compression": "zip"}, "The compression of csv is 'zip'; it must be one of none, gzip, zstd."),
        ({"dimensions": ["date"]}, "The dimensions have no 'date'; there are provider, model, model_family, team,"),
        ({"dimensions": "model"}, "The dimensions are 'model'; they must be a list of names out of provider, model,"),
        ({"dimensions": ["team", "team"]}, "The dimensions name team more than once; name each once."),
        ({"metrics": ["p95_latency_ms"]}, "The metrics have no 'p95_latency_ms'; there are total_tokens, input_tokens,"),
        ({"metrics": []}, "The export has no metrics; give at least one of total_tokens,"),
        ({"filters": {"colour": ["red"]}}, "The filters have no 'colour'; there are provider,"),
        ({"filters": {"team": "Search"}}, "The filter of team is 'Search'; it must be a list of one or more values."),
        ({"filters": {"team": []}}, r"The filter of team is \[\]; it must be a list of one or more values."),
        ({"names": "pretty"}, "The column names is 'pretty'; it must be one of friendly, raw."),
        ({"users": "hidden"}, "The user identifiers is 'hidden'; it must be one of kept, left_out, pseudonymised."),
        ({"users": "pseudonymised"}, "Pseudonymised users need a key; give user_key as env:NAME or file:PATH."),
        ({"user_key": "env:KEY"}, "A user_key is given but user identifiers are 'kept'; ask for 'pseudonymised', or give no key."),
        ({"users": "pseudonymised", "user_key": "hunter2"}, "The user_key must point at the key, as env:NAME or file:PATH"),
        ({"profile": "finops"}, "The profile is 'finops'; it must be one of usage, focus."),
        ({"profile": "focus", "focus_version": "0.5"}, "The FOCUS version is '0.5'; it must be one of 1.2, 1.3, 1.4."),
        ({"profile": "focus", "granularity": "month"}, "The granularity of a FOCUS export is 'month'; it must be one of hour, day."),
        ({"profile": "focus", "metrics": ["record_count"]}, "A FOCUS export has the specification's columns; leave the metrics out."),
        ({"focus_version": "1.3"}, "The focus_version is '1.3', but the profile is 'usage'; ask for 'focus'."),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_cannot_be_asked_is_said_in_one_sentence(changes: dict[str, Any], says: str):
    with pytest.raises(UsageError, match=says) as error:
        asked(**changes)
    assert "hunter2" not in str(error.value)


def test_names_of_the_specifications_granularities_are_understood():
    assert [asked(granularity=name).granularity for name in ("minute", "hourly", "daily", "monthly")] == [
        "minute",
        "hour",
        "day",
        "month",
    ]


def test_columns_stand_in_the_order_asked_with_names_beside_identifiers():
    columns = asked(
        granularity="month", dimensions=["cost_center", "model"], metrics=["estimated_cost", "request_count"]
    ).columns("EUR")
    assert [column.name for column in columns] == [
        "month", "cost_center_id", "cost_center_name", "model", "estimated_cost", "request_count",
    ]  # fmt: skip
    assert [column.label for column in columns][-2:] == ["Estimated Cost (EUR)", "Requests"]


def test_columns_of_users_follow_what_the_receiver_may_know():
    private = {"users": "pseudonymised", "user_key": "env:KEY"}
    for changes, expected in (({}, ["user_id", "user_name"]), (private, ["user_id"]), ({"users": "left_out"}, [])):
        columns = asked(dimensions=["user"], metrics=["record_count"], **changes).columns("USD")
        assert [column.name for column in columns] == ["date", *expected, "record_count"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "tokentra_usage_2026-06-01_to_2026-06-30_day.csv"),
        ({"compression": "gzip", "format": "jsonl"}, "tokentra_usage_2026-06-01_to_2026-06-30_day.jsonl.gz"),
        ({"profile": "focus"}, "tokentra_focus-1.3_2026-06-01_to_2026-06-30_day.csv"),
        ({"format": "parquet", "granularity": "hour"}, "tokentra_usage_2026-06-01_to_2026-06-30_hour.parquet"),
    ],
    ids=str,
)  # fmt: skip
def test_a_file_is_named_after_its_days(changes: dict[str, Any], name: str):
    assert asked(**changes).file_name == name
