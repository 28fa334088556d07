"""What is raised: levels of quotas, projections, anomalies, streaks of failures. Pure."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.alerts.alert_data import ACME, END, GLOBEX, START, quota_status
from tokentra_dagster.alerts.alert import QUOTA_LEVELS
from tokentra_dagster.alerts.event_alerts import AnomalyInsight, FailedRun, FailingSync, anomaly_alerts, run_alert, sync_alerts
from tokentra_dagster.alerts.quota_alerts import Limit, ProjectionRule, QuotaStatus, holding, news

HOUR = timedelta(hours=1)
NOW = START + timedelta(days=10)


def passing(*used: int, **changes) -> list[list[str]]:
    """The kinds raised at each reading of one quota's usage, of a limit of 1000."""
    raised, found = set(), []
    for amount in used:
        new = news(holding([quota_status(amount, projected=changes.get("projected", 0), **{k: v for k, v in changes.items() if k != "projected"})]), raised)  # fmt: skip
        raised |= {one.key for one in new}
        found.append([one.kind for one in new])
    return found


def test_each_level_is_raised_once_as_usage_passes_it():
    assert passing(700, 800, 850, 950, 1000, 1001, 5000) == [
        [], ["quota_warning"], [], ["quota_critical"], [], ["quota_exceeded"], [],
    ]  # fmt: skip


def test_a_jump_past_all_levels_raises_only_the_highest():
    assert passing(700, 1050, 1060) == [[], ["quota_exceeded"], []]


def test_usage_that_falls_by_a_restatement_and_rises_again_raises_nothing_anew():
    assert passing(1050, 960, 700, 810, 1100) == [["quota_exceeded"], [], [], [], []]
    assert passing(850, 700, 820, 960) == [["quota_warning"], [], [], ["quota_critical"]]


def test_a_new_period_raises_again():
    first = holding([quota_status(1050)])
    later = quota_status(1050, period_start=END, period_end=END + timedelta(days=31))
    assert [one.period_start for one in news(holding([later]), {one.key for one in first})] == [END]


def test_quotas_of_the_same_organisation_and_of_another_are_raised_apart():
    everyone = [quota_status(1050), quota_status(1050, quota_id=UUID(int=8)), quota_status(1050, org_id=GLOBEX)]
    assert len(news(holding(everyone), set())) == 3
    assert len(news(holding(everyone), {holding(everyone[:1])[0].key})) == 2


def test_a_projection_is_believed_after_a_quarter_of_the_period_and_not_once_the_limit_is_passed():
    assert passing(300, hours_elapsed=179.9, projected=1200) == [[]]
    assert passing(300, hours_elapsed=180.0, projected=1200) == [["quota_projected"]]
    assert passing(300, 310, 850, 1050, hours_elapsed=360.0, projected=1200) == [
        ["quota_projected"], [], ["quota_warning"], ["quota_exceeded"],
    ]  # fmt: skip
    assert passing(1050, 900, hours_elapsed=360.0, projected=1200) == [["quota_exceeded"], []], "it has come true before"
    assert passing(300, hours_elapsed=None, projected=None) == [[]]


@pytest.mark.parametrize(
    ("hours", "elapsed", "believed"),
    [(24, 5.9, False), (24, 6, True), (8, 3, False), (8, 4, True), (1, 0.4, False), (1, 0.5, True)],
)
def test_a_projection_needs_hours_as_well_as_a_share(hours: int, elapsed: float, believed: bool):
    status = quota_status(300, period_end=START + hours * HOUR, hours_elapsed=elapsed, projected=1200)
    assert bool(holding([status])) is believed
    rule = ProjectionRule(least_share=0.0, least_hours=0.0)
    assert holding([status], rule)


def test_every_limit_is_told_with_its_figures_the_worst_first_and_an_unknown_one_as_unknown():
    limits = (
        Limit("tokens", 10_000, 4_000, 8_000),
        Limit("output tokens", 1_000, 1_050, 2_100),
        Limit("requests", 10, None, None),
    )
    (one,) = holding([quota_status(status="exceeded", limits=limits, projected_to_exceed=True)])
    assert one.title == "Quota Team budget is exceeded"
    assert one.body.startswith(
        "1,050 of 1,000 output tokens (105.0 %). 4,000 of 10,000 tokens (40.0 %). Requests are unknown; the limit is 10."
    )
    assert "The period is 2026-06-01 00:00 UTC to 2026-07-01 00:00 UTC." in one.body and one.body.endswith("are refused.")
    (ahead,) = holding([quota_status(600, projected=1200)])
    assert ahead.body.startswith("600 of 1,000 tokens (60.0 %), 1,200 by the end of the period at this rate.")


def test_a_quota_whose_status_is_unknown_raises_nothing():
    assert holding([quota_status(status=None, projected_to_exceed=None)]) == []


def test_the_name_of_a_quota_stays_one_line():
    (one,) = holding([quota_status(1050, name="a\r\nBcc: x@example.com\u2028b\x00" + "c" * 500)])
    assert one.title.startswith("Quota a Bcc: x@example.com b c") and len(one.title) < 130
    assert not any(ord(character) < 32 for character in one.title + one.body)


@given(st.lists(st.integers(0, 2000), max_size=30), st.lists(st.booleans(), min_size=30, max_size=30))
def test_whatever_usage_does_no_level_is_raised_twice_or_below_one_that_was(amounts: list[int], projections: list[bool]):
    raised: list[str] = []
    keys = set()
    for used, ahead in zip(amounts, projections, strict=False):
        new = news(holding([quota_status(used, projected=3000 if ahead else 0)]), keys)
        keys |= {one.key for one in new}
        raised += [one.kind for one in new]
    assert len(raised) == len(set(raised))
    levels = [QUOTA_LEVELS[kind] for kind in raised if kind in QUOTA_LEVELS]
    assert levels == sorted(levels)
    if "quota_projected" in raised and "quota_exceeded" in raised:
        assert raised.index("quota_projected") < raised.index("quota_exceeded")
    if amounts and max(amounts) > 1000:
        assert "quota_exceeded" in raised


def insight(start: float, end: float, **changes) -> AnomalyInsight:
    """An anomaly from and to so many hours after NOW."""
    values = {
        "org_id": ACME, "severity": "warning", "title": "Tokens of the organization rose", "description": "9 tokens", "metric": "tokens",
        "dimension": None, "dimension_value": None, "direction": "spike", "starts_at": NOW + start * HOUR, "ends_at": NOW + end * HOUR,
    }  # fmt: skip
    return AnomalyInsight(**values | changes)


def test_an_anomaly_that_grows_and_is_told_by_another_series_is_not_news():
    (known,) = anomaly_alerts([insight(-20, -17)], [], NOW)
    again = [insight(-20, -2), insight(-19, -16, metric="requests", dimension="model", dimension_value="gpt-4o")]
    assert anomaly_alerts(again, [known], NOW) == []
    assert len(anomaly_alerts([insight(-20, -17), insight(-20, -16)], [], NOW)) == 1, "found by two windows"


def test_another_time_direction_organisation_or_errors_are_other_anomalies():
    (known,) = anomaly_alerts([insight(-20, -17)], [], NOW)
    others = [insight(-12, -9), insight(-20, -17, direction="drop"), insight(-20, -17, org_id=GLOBEX), insight(-20, -17, metric="errors")]  # fmt: skip
    assert len(anomaly_alerts(others, [known], NOW)) == 4


def test_analysing_the_past_again_raises_nothing():
    assert anomaly_alerts([insight(-100, -73)], [], NOW) == []
    assert len(anomaly_alerts([insight(-100, -72)], [], NOW)) == 1


def failing(failures: int = 1, transient: bool = False) -> FailingSync:
    return FailingSync(UUID(int=3), ACME, "acme/openai", "openai", failures, NOW, NOW, "The key was refused (401); make a new one.", transient)  # fmt: skip


def test_a_sync_that_cannot_mend_itself_alerts_at_once_and_another_after_a_run_with_its_retries():
    (one,) = sync_alerts([failing()])
    assert (one.severity, one.subject, one.period_start) == ("critical", str(UUID(int=3)), NOW)
    assert "the last sync failed: The key was refused (401); make a new one. What was loaded before stays." in one.body
    assert "tokentra connection test acme/openai" in one.body
    assert sync_alerts([failing(3, transient=True)]) == []
    (patient,) = sync_alerts([failing(4, transient=True)])
    assert patient.severity == "warning" and "the last 4 syncs failed" in patient.body
    assert sync_alerts([failing(9)])[0].key == one.key, "the same streak"


def test_a_job_that_keeps_failing_is_one_streak_until_it_rests_for_a_day():
    run = FailedRun("r1", "build_job", NOW, "The disk is full", ("dbt_models",))
    first = run_alert(run)
    assert first.org_id is None and first.severity == "critical" and "in dbt_models: The disk is full" in first.body
    soon = run_alert(FailedRun("r2", "build_job", NOW + HOUR, "again"), [(NOW, NOW)])
    assert soon.key == first.key
    late = run_alert(FailedRun("r3", "build_job", NOW + 26 * HOUR, "again"), [(NOW, NOW + HOUR)])
    assert late.key != first.key


def test_a_row_of_the_view_becomes_a_status_with_the_limits_that_are_set():
    row = dict.fromkeys(("token_limit", "request_limit", "input_token_limit", "output_token_limit"))
    row |= {f"projected_{name}": 5 for name in ("total_tokens", "total_requests", "input_tokens", "output_tokens")}
    row |= {
        "quota_id": UUID(int=7), "org_id": ACME, "quota_name": "q", "scope_type": "user", "enforcement_mode": "alert", "period_start": START,
        "period_end": END, "status": None, "projected_to_exceed": None, "hours_elapsed": None, "data_until": None,
        "warning_threshold_pct": 80, "critical_threshold_pct": 95, "total_tokens": 0, "total_requests": None, "input_tokens": 0, "output_tokens": 0,
        "request_limit": 10,
    }  # fmt: skip
    assert QuotaStatus.of(row).limits == (Limit("requests", 10, None, 5),)
