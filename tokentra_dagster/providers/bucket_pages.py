"""Walking a report that comes in time buckets: each bucket of a window once, in order, none lost, in bounded memory.

OpenAI's usage and costs and Anthropic's legacy reports answer in this form: pages of buckets, each with a list of results,
and a token for the next page. Nothing here knows which of them is asked.

A page is limited by buckets, not by results, so an organisation with many keys and users could send a page of any size. A
page that grows over `LARGEST_PAGE` is given up while it arrives, and the walk asks again for fewer buckets at a time. One
single bucket is taken whatever its size: nothing smaller can be asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers.base import Window
from tokentra_dagster.providers.failures import Caller, DamagedPage, PageTooLarge, Refused
from tokentra_dagster.records import GRANULARITY_SECONDS

LARGEST_PAGE = 8 << 20
"""Bytes of one page of more than one bucket. Read into Python objects it takes some six times as much memory."""
FEWER = 4
MOST_BARREN_PAGES = 8
"""How many pages in a row that bring no new bucket are followed."""


@dataclass(frozen=True, slots=True)
class Bucket:
    start: datetime
    end: datetime
    results: list[Any]


@dataclass(frozen=True, slots=True)
class Report:
    """One report: how it is asked for a page from `start` to `end` of at most `limit` buckets, and how a page is read."""

    asking: str
    ask: Callable[[datetime, datetime, int, str | None], Any]
    read: Callable[[dict[str, Any]], list[Bucket]]
    """The page's buckets. Raises `DamagedPage` unless the whole page has the shape that it should have."""
    limit: int
    hint: str = ""


def buckets(caller: Caller, report: Report, window: Window) -> Iterator[Bucket]:
    """Each bucket that starts in the window, once. Every page of one walk repeats the same parameters.

    A page token can be refused (HTTP 400) or lead nowhere. The walk then starts again, without a token, at the end of the
    last bucket that arrived. Each restart must bring something new, so there are never more restarts than buckets; one that
    brings nothing is an error, never a result with a part missing.
    """
    limit = report.limit
    asked_from = reached = window.start
    token: str | None = None
    used: set[str] = set()
    seen: set[int] = set()
    barren = 0
    progressed = True
    nothing_came = True

    def fetch() -> dict[str, Any]:
        return caller.page(
            report.asking,
            lambda: report.ask(asked_from, window.end, limit, token),
            report.read,
            report.hint,
            LARGEST_PAGE if limit > 1 else None,
        )

    while True:
        try:
            page = fetch()
        except PageTooLarge:
            limit, asked_from, token = max(1, limit // FEWER), reached, None
            used.clear()
            continue
        except Refused as refusal:
            if token is None or refusal.status != 400:
                raise
            problem, refused = "keeps refusing its own page tokens", True
        else:
            refused = fresh = False
            following = page.get("next_page") if page.get("has_more", True) else None
            came = report.read(page)
            del page  # two pages are never in memory together
            for bucket in came:
                nothing_came = False
                _check_width(caller.provider, report.asking, bucket, GRANULARITY_SECONDS[window.granularity])
                if (at := int(bucket.start.timestamp())) in seen:
                    continue
                seen.add(at)
                reached = max(reached, bucket.end)
                fresh = progressed = True
                if window.start <= bucket.start < window.end:
                    yield bucket
            del came
            if not following:
                return
            barren = 0 if fresh else barren + 1
            if following not in used and barren <= MOST_BARREN_PAGES:
                used.add(following)
                token = following
                continue
            problem = "keeps repeating the same pages"
        if reached >= min(window.end, datetime.now(UTC)):
            return
        if not progressed:
            if nothing_came and not refused:
                return  # asked afresh from there, and there was no bucket at all
            raise TransientError(
                f"{caller.provider}: {report.asking} {problem} after {reached:%Y-%m-%d %H:%M} UTC; "
                "try again later or a shorter window"
            )
        asked_from, token, progressed, nothing_came, barren = reached, None, False, True, 0
        used.clear()


def check_page(page: dict[str, Any], start: str, end: str) -> list[dict[str, Any]]:
    """The page's buckets as they came; `start` and `end` are what their bounds are called. Raises `DamagedPage`."""
    data = page.get("data")
    if not isinstance(data, list):
        raise DamagedPage("it has no list `data`")
    if not isinstance(page.get("next_page"), str | None):
        raise DamagedPage(f"next_page is {page['next_page']!r}")
    for bucket in data:
        if not isinstance(bucket, dict) or not isinstance(results_of(bucket), list):
            raise DamagedPage("a bucket has no list `results`")
        for name in (start, end):
            if name not in bucket:
                raise DamagedPage(f"a bucket has no {name}")
    return data


def results_of(bucket: dict[str, Any]) -> Any:
    """What is in the bucket; older answers name the list `result`."""
    return bucket.get("results", bucket.get("result"))


def _check_width(provider: str, asking: str, bucket: Bucket, seconds: int) -> None:
    if not 0 < (bucket.end - bucket.start).total_seconds() <= seconds:
        raise PermanentError(
            f"{provider}: {asking} gave a bucket from {bucket.start:%Y-%m-%d %H:%M:%S} to {bucket.end:%Y-%m-%d %H:%M:%S} UTC "
            f"where buckets of {seconds} s were asked for; check that base_url is the provider's API"
        )
