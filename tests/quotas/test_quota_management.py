"""Quotas created, found, changed, paused and deleted (specification 8); each mistake is one sentence, each change a version."""

from __future__ import annotations

import itertools
import threading
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from tests.quota_calendar import period_of
from tests.warehouse_data import connection, one, rows
from tokentra_dagster.errors import UsageError
from tokentra_dagster.quotas import Request, check
from tokentra_dagster.quotas.management import add_quota, change_quota, delete_quota, find_quota, quotas, set_active
from tokentra_dagster.quotas.standing import standings, versions
from tokentra_dagster.warehouse.directory import add_organization, ensure_entities


@pytest.fixture
def acme(database) -> UUID:
    with database.connect() as db:
        org, _ = add_organization(db, "acme")
        ensure_entities(db, org, "team", ["ads", "search"])
        ensure_entities(db, org, "project", ["web"])
    connection(database, org="globex")
    return org


def request_of(quota) -> Request:
    fields = {
        "team": "team_id",
        "project": "project_id",
        "user": "user_identifier",
        "api_key": "api_key_id",
        "feature": "feature",
    }
    return Request(
        quota.org_id, tokens=1, **({fields[quota.scope_type]: quota.scope_value} if quota.scope_type in fields else {})
    )


SCOPES = {"organization": None, "team": "search", "project": "web", "user": "ann", "api_key": "sk-1", "feature": "chat/mail"}
PERIODS = [("hourly", 1, 0), ("daily", 1, 7), ("weekly", 0, 23), ("monthly", 31, 6)]
LIMITS = ["token_limit", "request_limit", "input_token_limit", "output_token_limit"]


def test_every_scope_period_and_limit_is_created_as_it_was_said_and_applies(database, acme):
    made = {}
    with database.connect(autocommit=True) as db:
        for (scope_type, scope), (period_type, day, hour), limit in itertools.product(SCOPES.items(), PERIODS, LIMITS):
            quota = add_quota(
                db, org="acme", name=f"{scope_type} {period_type} {limit}", scope_type=scope_type, scope=scope,
                period_type=period_type, period_reset_day=day, period_reset_hour=hour, **{limit: 7},
            )  # fmt: skip
            assert quota.label == f"acme/{quota.name}" and quota.scope_name == (scope or "acme")
            assert quota.terms.limits == {limit: 7} and quota.terms.period.startswith(period_type)
            made[quota.id] = quota
        for scope_type in SCOPES:
            of_scope = {one.id for one in made.values() if one.scope_type in (scope_type, "organization")}
            asked = next(one for one in made.values() if one.scope_type == scope_type)
            assert set(check(db, request_of(asked)).applicable_quotas) == of_scope
        found = standings(db, list(made))
    for identifier, quota in made.items():
        assert [one.limit for one in found[identifier].measures if one.limit] == [7] and found[identifier].status is None
        now = datetime.now(UTC)
        terms = quota.terms
        assert (found[identifier].period_start, found[identifier].period_end) in [
            period_of(terms.period_type, terms.period_reset_day, terms.period_reset_hour, moment)
            for moment in (now, now - timedelta(minutes=1))
        ]


MISTAKES = [
    ({"token_limit": 0}, "The limit of tokens is 0; use a whole number from 1 to 10^15, or no limit."),
    ({"input_token_limit": -5}, "The limit of input tokens is -5;"),
    ({"request_limit": 10**15 + 1}, "The limit of requests is 1000000000000001;"),
    ({}, "The quota has no limit; set at least one of tokens, requests, input tokens, output tokens."),
    ({"token_limit": 1, "warning_threshold_pct": 96}, "The warning threshold is 96 % and the critical one 95 %;"),
    ({"token_limit": 1, "warning_threshold_pct": 0}, "both must be from 1 to 100"),
    ({"token_limit": 1, "critical_threshold_pct": 101}, "both must be from 1 to 100"),
    ({"token_limit": 1, "period_type": "yearly"}, "The period is 'yearly'; it must be one of hourly, daily, weekly, monthly."),
    ({"token_limit": 1, "enforcement_mode": "stop"}, "it must be one of alert, throttle, block."),
    ({"token_limit": 1, "period_type": "weekly", "period_reset_day": 7}, "0 (Sunday) to 6 (Saturday)"),
    ({"token_limit": 1, "period_reset_day": 0}, "The reset day of a monthly quota is 0; it must be 1 to 31"),
    ({"token_limit": 1, "period_type": "daily", "period_reset_day": 2}, "A daily quota has no reset day; leave it out."),
    ({"token_limit": 1, "period_type": "hourly", "period_reset_hour": 2}, "begins anew every hour"),
    ({"token_limit": 1, "period_reset_hour": 24}, "The reset hour is 24; it must be 0 to 23, UTC."),
    ({"token_limit": 1, "scope_type": "team", "scope": "serach"}, "acme has no team named 'serach'. There are: ads, search."),
    ({"token_limit": 1, "scope_type": "project", "scope": "search"}, "acme has no project named 'search'. There are: web."),
    ({"token_limit": 1, "scope_type": "user", "scope": " "}, "The quota is of one user; say which."),
    ({"token_limit": 1, "scope_type": "organization", "scope": "acme"}, "leave it out"),
    ({"token_limit": 1, "scope_type": "galaxy"}, "The scope is 'galaxy'; it must be one of organization, team, project, user"),
    ({"token_limit": 1, "name": "a/b"}, "without slashes"),
    ({"token_limit": 1, "name": "two\nlines"}, "one line"),
    ({"token_limit": 1, "name": "there"}, "acme already has a quota named 'there'; choose another name, or change that one: "),
    ({"token_limit": 1, "org": "nobody"}, "No organisation is named 'nobody'. There are: acme, globex."),
]  # fmt: skip


def test_a_mistake_is_one_sentence_and_nothing_is_written(database, acme):
    with database.connect(autocommit=True) as db:
        add_quota(db, org="acme", name="there", token_limit=1)
        for terms, words in MISTAKES:
            with pytest.raises(UsageError) as raised:
                add_quota(db, **({"org": "acme", "name": "q"} | terms))
            assert words in str(raised.value)
    assert one(database, "SELECT count(*) FROM usage_quotas") == 1


def test_a_change_is_a_version_with_what_it_changed_and_a_change_of_nothing_is_none(database, acme):
    with database.connect() as db:
        add_quota(db, org="acme", name="budget", token_limit=1000, period_reset_day=31)
    for changes in (
        {"token_limit": 2000, "request_limit": 5},
        {"token_limit": 2000},
        {"period_type": "weekly"},
        {"name": "team budget", "scope_type": "team", "scope": "search"},
        {"token_limit": None, "enforcement_mode": "block"},
        {"description": "agreed in May"},
    ):
        with database.connect() as db:
            change_quota(db, str(find_quota(db, "acme/team budget" if _named(db, "team budget") else "budget").id), changes)
    with database.connect() as db:
        quota = find_quota(db, "team budget")
        assert set_active(db, "team budget", False)[1] and not set_active(db, "team budget", False)[1]
    with database.connect() as db:
        found = versions(db, quota.id)
    assert [one.changes for one in found] == [
        (),
        ("token_limit 1,000 -> 2,000", "request_limit none -> 5"),
        ("period_type monthly -> weekly", "period_reset_day 31 -> 1"),
        ("name budget -> team budget", "scope organization -> team search"),
        ("token_limit 2,000 -> none", "enforcement_mode alert -> block"),
        ("paused",),
    ]
    assert quota.description == "agreed in May" and quota.terms.period == "weekly from Monday 00:00 UTC"


def _named(db, name: str) -> bool:
    return any(quota.name == name for quota in quotas(db))


WRONG_CHANGES = [
    ({}, "Nothing is to be changed of quota acme/budget"),
    ({"token_limit": None}, "The quota has no limit"),
    ({"warning_threshold_pct": 99}, "the warning must not be the higher"),
    ({"name": "other"}, "acme already has a quota named 'other'"),
    ({"scope_type": "team", "scope": "nobody"}, "There are: ads, search."),
    ({"period_type": "weekly", "period_reset_day": 31}, "0 (Sunday) to 6"),
]


def test_a_change_that_cannot_be_is_one_sentence_and_changes_nothing(database, acme):
    with database.connect(autocommit=True) as db:
        add_quota(db, org="acme", name="budget", token_limit=1000)
        add_quota(db, org="acme", name="other", token_limit=1000)
        for changes, words in WRONG_CHANGES:
            with pytest.raises(UsageError) as raised:
                change_quota(db, "budget", changes)
            assert words in str(raised.value)
    assert one(database, "SELECT count(*) FROM usage_quota_versions") == 2


def test_a_deleted_quota_is_found_by_who_asks_for_its_history_and_gives_its_name_free(database, acme):
    with database.connect() as db:
        first = add_quota(db, org="acme", name="budget", scope_type="team", scope="ads", token_limit=1)
        add_quota(db, org="globex", name="budget", token_limit=1)
    with database.connect() as db, pytest.raises(UsageError, match="Several organisations have a quota 'budget'; say which"):
        find_quota(db, "budget")
    with database.connect() as db:
        assert delete_quota(db, "acme/budget").id == first.id
    with database.connect() as db:
        gone = find_quota(db, "acme/budget", with_deleted=True)
        assert (gone.id, gone.scope, gone.deleted_at is not None) == (first.id, "team ads", True)
        with pytest.raises(UsageError, match=r"No quota is named 'acme/budget'\. There are: globex/budget\."):
            find_quota(db, "acme/budget")
        second = add_quota(db, org="acme", name="budget", token_limit=2)
    with database.connect() as db:
        assert find_quota(db, "acme/budget", with_deleted=True).id == second.id
        assert find_quota(db, str(first.id), with_deleted=True).id == first.id
        assert [quota.label for quota in quotas(db, "acme")] == ["acme/budget"]


def test_two_changes_at_once_both_count(database, acme):
    """Each reads what the other wrote: neither limit is lost."""
    with database.connect() as db:
        add_quota(db, org="acme", name="budget", token_limit=1)
    together = threading.Barrier(2)

    def change(changes):
        with database.connect() as db:
            together.wait()
            change_quota(db, "budget", changes)

    threads = [threading.Thread(target=change, args=[{limit: 9}]) for limit in ("request_limit", "input_token_limit")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows(database, "SELECT token_limit, request_limit, input_token_limit FROM usage_quotas") == [
        {"token_limit": 1, "request_limit": 9, "input_token_limit": 9}
    ]
