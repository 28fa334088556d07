"""Every source does what a source must (tests/providers/conformance.py): the same questions to all of them, at real local peers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.providers.cases import CASES
from tests.providers.conformance import BROKEN, DAY, ONE_DAY, PERMANENT, TOPICS, TRANSIENT, Case, key_of, peak, totals
from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers import INTEGRATIONS
from tokentra_dagster.providers.base import Source, Window
from tokentra_dagster.records import RejectedItem, UsageRecord, split

MOST_BYTES_EACH = 600
"""What tells a repeat is 100 bytes, what is kept of every answer and hour some hundred; a row or a record that is kept, above 1,100."""


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    found: Case = request.param()
    found.fixture = request.getfixturevalue
    with found.running(tmp_path):
        yield found


def skip_unless(case: Case, topic: str) -> None:
    if reason := case.not_applicable.get(topic):
        pytest.skip(f"{case.name}: {reason}")


def day_of(case: Case) -> Window:
    return Window(DAY, DAY + case.largest_day, "1h")


def read(source: Source, window: Window) -> tuple[list[UsageRecord], list[RejectedItem]]:
    usage, _, rejected = split(source.usage(window))
    return usage, rejected


def test_every_integration_has_a_case_and_says_why_what_does_not_apply():
    assert {case.name for case in CASES} == set(INTEGRATIONS)
    for case in CASES:
        assert set(case.not_applicable) <= set(TOPICS) and all(case.not_applicable.values())


def test_the_totals_are_the_peers_own_and_every_record_lies_in_the_window(case):
    window = day_of(case)
    usage, rejected = read(case.source(), window)
    assert rejected == []
    assert totals(usage) == case.truth(window.start, window.end) != {}
    assert all(window.start <= record.bucket_start < record.bucket_end <= window.end for record in usage)
    assert {record.granularity for record in usage} == {"1h"}


def test_read_twice_it_says_the_same(case):
    window = day_of(case)
    first, second = (sorted(map(key_of, read(case.source(), window)[0])) for _ in range(2))
    assert first == second and len(set(first)) == len(first)


def test_windows_that_follow_one_another_add_up_to_one(case):
    """Days begin at midnight UTC, and what lies at an edge is in one of both."""
    middle = DAY + ONE_DAY
    hours = case.largest_day / 2
    halves = [Window(middle - hours, middle, "1h"), Window(middle, middle + hours, "1h")]
    parts = [record for window in halves for record in read(case.source(), window)[0]]
    whole = read(case.source(), Window(middle - hours, middle + hours, "1h"))[0]
    assert sorted(map(key_of, parts)) == sorted(map(key_of, whole))
    assert totals(parts) == case.truth(middle - hours, middle + hours)


@pytest.mark.parametrize(("number", "width"), [(0, "1h"), (1, "1d")])
def test_a_long_window_is_read_whole(case, number, width):
    """Longer than what providers answer at once: a month of hours, a quarter of days."""
    window = Window(DAY + ONE_DAY - case.long_windows[number], DAY + ONE_DAY, width)
    before = 0 if "paging" in case.not_applicable else case.answers()
    usage, rejected = read(case.source(), window)
    assert rejected == [] and totals(usage) == case.truth(window.start, window.end)
    if width == "1h" and "paging" not in case.not_applicable:
        assert case.answers() > before + 1, "one answer held everything: the window is too short to show paging"


def test_hours_and_days_say_the_same(case):
    window = Window(DAY, DAY + ONE_DAY, "1d") if case.largest_day == ONE_DAY else None
    if window is None:
        pytest.skip(f"{case.name}: a whole day of requests is large")
    assert totals(read(case.source(), window)[0]) == totals(read(case.source(), day_of(case))[0])


def test_a_window_without_usage_is_empty_and_no_error(case):
    window = case.empty_window()
    try:
        assert read(case.source(), window) == ([], [])
    except PermanentError as refused:
        # Where the source cannot know, it says so: a window that nobody can speak of is not an empty one.
        assert case.name == "aws" and "CloudWatch" in str(refused)


def test_a_past_that_changed_is_read_as_it_is_now(case):
    skip_unless(case, "restatement")
    window = day_of(case)
    before = totals(read(case.source(), window)[0])
    case.restate(window.start, window.end)
    now = totals(read(case.source(), window)[0])
    assert now == case.truth(window.start, window.end) != before


@pytest.mark.parametrize("kind", PERMANENT)
def test_what_only_a_person_can_mend_stops_at_once_with_one_sentence(case, kind):
    skip_unless(case, kind)
    case.fault(kind, times=50)
    before = case.answers()
    with pytest.raises(PermanentError) as raised:
        read(case.source(), day_of(case))
    assert "\n" not in str(raised.value)
    assert 0 < case.answers() - before <= 12, "it kept asking"


@pytest.mark.parametrize("kind", TRANSIENT)
def test_what_passes_is_tried_again_and_nothing_is_lost(case, kind):
    skip_unless(case, kind)
    window = day_of(case)
    case.fault(kind)
    usage, rejected = read(case.source(), window)
    assert rejected == [] and totals(usage) == case.truth(window.start, window.end)


@pytest.mark.parametrize("kind", ["rate_limit", "server_error"])
def test_what_does_not_pass_is_given_up_after_the_retries_and_is_transient(case, kind):
    skip_unless(case, kind)
    case.fault(kind, times=100)
    before = case.answers()
    with pytest.raises(TransientError):
        read(case.source(), day_of(case))
    assert case.answers() - before <= 24, "retries are bounded"


def test_a_rate_limit_that_asks_for_patience_gets_it(case, monkeypatch):
    skip_unless(case, "rate_limit")
    skip_unless(case, "patience")
    case.patience, slept, own = 7.0, [], threading.get_ident()
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: slept.append(seconds) if threading.get_ident() == own else sleep(seconds))
    case.fault("rate_limit")
    assert totals(read(case.source(), day_of(case))[0]) == case.truth(DAY, DAY + case.largest_day)
    assert max(slept, default=0.0) >= 7


def test_ten_times_as_much_needs_little_more_memory(case):
    """What tells a repeat may be kept of each request, but no request, page or record."""
    skip_unless(case, "memory")
    source, found = case.source(), []
    for times in (1, 10):
        window, requests = case.crowd(times)
        if times == 1:
            read(source, window)  # what is imported and remembered once does not count
        needed, items = peak(source, window, case.may_fork)
        found.append((needed, requests or items))
    (little, few), (more, many) = found
    assert many > 5 * few
    assert (more - little) / (many - few) < MOST_BYTES_EACH, f"{little:,} bytes for {few:,}, {more:,} for {many:,}"


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_answer_is_an_error_or_a_rejected_item_and_never_silently_less(case, kind):
    skip_unless(case, kind)
    window = Window(DAY - timedelta(days=90), DAY + ONE_DAY, "1d") if "paging" in case.not_applicable else day_of(case)
    case.fault(kind)
    try:
        usage, rejected = read(case.source(), window)
    except (PermanentError, TransientError):
        return
    assert rejected or totals(usage) == case.truth(window.start, window.end)


def test_the_secret_is_in_no_error_no_log_and_no_repr(case, caplog, capfd):
    skip_unless(case, "secret")
    source = case.source()
    said: list[str] = [repr(source), repr(vars(source))]
    with caplog.at_level(logging.DEBUG):
        for kind in (*PERMANENT, "server_error"):
            case.fault(kind, times=30)
            try:
                read(case.source(), day_of(case))
            except (PermanentError, TransientError) as error:
                said += [str(error), repr(error), repr(error.__cause__), repr(error.__context__)]
            _forget(case)
    said += [record.getMessage() for record in caplog.records] + list(capfd.readouterr())
    assert len(said) > 5 and not [text for text in said if case.secret in text]


def _forget(case: Case) -> None:
    forget: Callable[[], None] | None = getattr(getattr(getattr(case, "simulator", None), "simulation", None), "reset", None)
    if forget:
        forget()
