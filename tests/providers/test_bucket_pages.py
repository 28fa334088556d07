"""Reports in time buckets (OpenAI, Anthropic's legacy ones): nothing lost whatever the pages do, memory bounded whatever their size."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tokentra_dagster.errors import TransientError
from tokentra_dagster.providers import bucket_pages
from tokentra_dagster.providers.openai_endpoints import TOKEN_DETAILS

START = datetime(2025, 12, 1, tzinfo=UTC)
OPENAI, LEGACY = "/v1/organization/usage/completions", "/v1/organizations/usage_report/messages"


WIDE = dict.fromkeys(TOKEN_DETAILS, 0) | {
    "input_cached_tokens": 0, "input_uncached_tokens": 1, "input_cache_write_tokens": 0, "batch": False,
    "project_id": "proj_0123456789abcdef01234567", "user_id": "user-0123456789abcdef01234567", "service_tier": "default",
}  # fmt: skip
"""What OpenAI really sends with each result: some 700 bytes."""


@dataclass
class Vendor:
    """One report and how it spells things; `bucket(hour, keys)` holds one result of 1 output token for each key."""

    path: str
    name: str
    further: dict[str, Any] = field(default_factory=dict)

    def text(self, moment: datetime) -> int | str:
        return int(moment.timestamp()) if self.name == "openai" else f"{moment:%Y-%m-%dT%H:%M:%SZ}"

    def moment(self, text: str) -> datetime:
        return datetime.fromtimestamp(int(text), UTC) if self.name == "openai" else datetime.fromisoformat(text)

    def bucket(self, start: datetime, keys: int = 1):
        openai = {"object": "organization.usage.completions.result", "input_tokens": 1, "num_model_requests": 1}
        anthropic = {
            "uncached_input_tokens": 1, "cache_read_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        }  # fmt: skip
        result = (openai if self.name == "openai" else anthropic) | {"output_tokens": 1, "model": "m"} | self.further
        bounds = ("start_time", "end_time") if self.name == "openai" else ("starting_at", "ending_at")
        times = (self.text(start), self.text(start + timedelta(hours=1)))
        return dict(zip(bounds, times, strict=True)) | {"results": [result | {"api_key_id": f"key_{n}"} for n in range(keys)]}

    def page(self, *buckets, following=None):
        return {"data": list(buckets), "has_more": following is not None, "next_page": following}

    def asked_from(self, asked) -> datetime:
        return self.moment(asked.one("start_time" if self.name == "openai" else "starting_at"))

    def serve(self, keys: int, hours: int):
        """Answers as the real report does: `limit` buckets from where it is asked, then a token that holds the next hour."""

        def answer(asked):
            first = int(asked.one("page") or (self.asked_from(asked) - START).total_seconds() // 3600)
            last = min(first + int(asked.one("limit")), hours)
            rest = str(last) if last < hours else None
            return self.page(*(self.bucket(START + n * timedelta(hours=1), keys) for n in range(first, last)), following=rest)

        return answer


@pytest.fixture(params=["openai", "anthropic"])
def vendor(request):
    return Vendor(OPENAI if request.param == "openai" else LEGACY, request.param)


@pytest.fixture
def source(vendor, request):
    open_it = request.getfixturevalue(vendor.name)
    return open_it(endpoints="completions") if vendor.name == "openai" else open_it(api="legacy")


@pytest.fixture
def two_days(days):
    return days((2025, 12, 1), (2025, 12, 3), "1h")


def hours(items):
    return [int((item.bucket_start - START).total_seconds() // 3600) for item in items]


def test_an_empty_page_with_a_token_is_followed_and_loses_nothing(provider, source, vendor, two_days):
    provider.on(
        vendor.path, vendor.page(following="t1"), vendor.page(following="t2"), vendor.page(vendor.bucket(START))
    )  # fmt: skip
    assert hours(source.usage(two_days)) == [0]
    assert [asked.one("page") for asked in provider.requests] == [None, "t1", "t2"]


def test_the_end_of_the_usage_before_the_end_of_the_window_is_not_an_error(provider, source, vendor, two_days):
    def answer(asked):
        first = vendor.page(vendor.bucket(START), following="t")
        return vendor.page(following="t") if asked.one("page") or vendor.asked_from(asked) > START else first

    provider.on(vendor.path, answer)
    assert hours(source.usage(two_days)) == [0]


def test_a_token_that_is_refused_restarts_after_the_last_bucket(provider, source, vendor, two_days, answer):
    refused = answer({"error": {"message": "page: Invalid page token."}}, status=400)
    provider.on(
        vendor.path, vendor.page(vendor.bucket(START), following="bad"), refused,
        vendor.page(vendor.bucket(START + timedelta(hours=1))),
    )  # fmt: skip
    assert hours(source.usage(two_days)) == [0, 1]
    third = provider.requests[2]
    assert (third.one("page"), vendor.asked_from(third)) == (None, START + timedelta(hours=1))


def test_empty_pages_without_end_are_an_end_not_a_hang(provider, source, vendor, two_days):
    numbers = iter(range(10_000))
    provider.on(vendor.path, lambda asked: vendor.page(following=f"t{next(numbers)}"))
    assert list(source.usage(two_days)) == []
    assert len(provider.requests) < 25


def test_a_page_is_read_before_the_next_is_asked_for(provider, source, vendor, two_days):
    provider.on(
        vendor.path, vendor.page(vendor.bucket(START), following="t"), vendor.page(vendor.bucket(START + timedelta(hours=1)))
    )
    items = source.usage(two_days)
    next(items)
    assert len(provider.requests) == 1
    assert len(list(items)) == 1


def test_a_page_that_is_too_large_is_asked_for_again_in_smaller_ones(provider, source, vendor, two_days, monkeypatch):
    monkeypatch.setattr(bucket_pages, "LARGEST_PAGE", 20_000)
    provider.on(vendor.path, vendor.serve(keys=10, hours=48))
    assert hours(source.usage(two_days)) == [hour for hour in range(48) for _ in range(10)]
    limits = [int(asked.one("limit")) for asked in provider.requests]
    assert limits[:3] == [168, 42, 10]
    fitting = [asked for asked in provider.requests if asked.one("limit") == str(limits[-1])]
    same = [{k: v for k, v in asked.query.items() if k != "page"} for asked in fitting]
    assert fitting[0].one("page") is None and same == [same[0]] * len(same)


def test_one_bucket_is_taken_whatever_its_size(provider, source, vendor, two_days, monkeypatch):
    monkeypatch.setattr(bucket_pages, "LARGEST_PAGE", 100)
    provider.on(vendor.path, vendor.serve(keys=3, hours=4))
    assert hours(source.usage(two_days)) == [hour for hour in range(4) for _ in range(3)]
    assert provider.requests[-1].one("limit") == "1"


def test_a_page_that_stalls_half_way_is_asked_again_then_transient(provider, vendor, request, two_days, answer):
    open_it = request.getfixturevalue(vendor.name)
    options = {"endpoints": "completions"} if vendor.name == "openai" else {"api": "legacy"}
    stalled = answer(vendor.page(vendor.bucket(START)), stall=2)
    provider.on(vendor.path, stalled, vendor.page(vendor.bucket(START)))
    assert hours(open_it(timeout_seconds="0.3", **options).usage(two_days)) == [0]
    provider.on(vendor.path, stalled)
    with pytest.raises(TransientError, match="broke off with ReadTimeout"):
        list(open_it(timeout_seconds="0.3", max_retries="0", **options).usage(two_days))


def test_a_first_bucket_shorter_than_asked_for_is_taken(provider, source, vendor, two_days):
    short = vendor.bucket(START)
    short["end_time" if vendor.name == "openai" else "ending_at"] = vendor.text(START + timedelta(minutes=20))
    provider.on(vendor.path, vendor.page(short))
    (record,) = source.usage(two_days)
    assert record.bucket_end - record.bucket_start == timedelta(minutes=20)


READER = """
import sys
from datetime import UTC, datetime
from tokentra_dagster.providers import open_source
from tokentra_dagster.providers.base import ConnectionConfig, Window
source = open_source(ConnectionConfig("openai", "k", sys.argv[1] + "/v1", {"endpoints": "completions"}))
window = Window(datetime(2025, 12, 1, tzinfo=UTC), datetime(2025, 12, 8, tzinfo=UTC), "1h")
items = sum(1 for _ in source.usage(window))
print(items, next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_week_of_a_large_organisation_is_read_in_little_memory(provider):
    """168 hours of 500 keys each. With 1,000 keys, all in one page of 121 MB, the reader took 500 MB; in smaller pages 88 MB."""
    vendor = Vendor(OPENAI, "openai", further=WIDE)
    provider.on(OPENAI, vendor.serve(keys=500, hours=168))
    done = subprocess.run(
        [sys.executable, "-c", READER, provider.url], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    items, peak = map(int, done.stdout.split())
    assert items == 84_000
    assert peak < 150 * 1024, f"{peak / 1024:.0f} MB"
