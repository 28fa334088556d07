"""Two sources of the same usage: counted once, and the second one's users, teams and features spread over the first one's totals.

Every case is an organisation of its own in one database, built once.
"""

from __future__ import annotations

import json
import random
import re
import shlex
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from tests.dbt.conftest import database_named, run_dbt
from tests.warehouse_data import DAY, HOUR, connection, load, one, record, rows
from tokentra_dagster.cli import cli
from tokentra_dagster.ingest.authority import set_authority
from tokentra_dagster.records import UsageRecord
from tokentra_dagster.warehouse.database import Database

PAGE = Path(__file__).parents[2] / "docs" / "marts.md"
MODELS = "+daily_usage_allocation +daily_usage_rollup dim_teams"
UNLISTED = "orion-preview-1"


def tokens(count: int, **fields) -> UsageRecord:
    return record(**({"input_tokens": count, "output_tokens": 0, "model": UNLISTED} | fields))


CASES: dict[str, tuple[list[UsageRecord], list[UsageRecord]]] = {
    "seen in part": (
        [tokens(100, request_count=9)],
        [tokens(60, team="A", request_count=6), tokens(20, team="B", request_count=3)],
    ),
    "seen too much": ([tokens(100, request_count=3)], [tokens(150, team="A"), tokens(50, team="B")]),
    "named by nobody": ([tokens(100)], [tokens(60, team="A"), tokens(40)]),
    "the provider knows": ([tokens(70, team="Own"), tokens(30)], [tokens(100, team="A")]),
    "requests unknown": ([tokens(100, request_count=None)], [tokens(100, team="A")]),
    "requests unknown beside": (
        [tokens(100, request_count=50)],
        [tokens(30, team="A", request_count=None), tokens(10, team="B", request_count=1)],
    ),
    "by what it cost": (
        [record(input_tokens=1_000_000, output_tokens=100_000)],
        [record(input_tokens=1_000_000, output_tokens=0, team="A"), record(input_tokens=0, output_tokens=100_000, team="B")],
    ),
    "thirds": ([tokens(100, request_count=1)], [tokens(7, team=name) for name in "ABC"]),
    "another model": ([tokens(100, model="gpt-4o-2024-08-06"), tokens(5, model="o3")], [tokens(100, model="gpt-4o", team="A")]),
    "two currencies": (
        [tokens(60, reported_cost=Decimal(6), currency="EUR"), tokens(40, reported_cost=Decimal(8), currency="USD")],
        [tokens(50, team="A")],
    ),
}


def random_usage(seed: int) -> tuple[list[UsageRecord], list[UsageRecord]]:
    generator = random.Random(seed)

    def some(count: int, known: float) -> list[UsageRecord]:
        def maybe(*names: str) -> str | None:
            return generator.choice(names) if generator.random() < known else None

        return [
            record(
                DAY + generator.randrange(24) * HOUR, model=generator.choice(["gpt-4o", "o3", UNLISTED]),
                input_tokens=generator.randrange(10**9), output_tokens=generator.randrange(10**6), request_count=generator.randrange(99),
                team=maybe("A", "B"), feature=maybe("chat", "search"), user_id=maybe("ann", "bob", "cy"), project=maybe("P"),
                api_key_id=f"key-{number}",
            )
            for number in range(count)
        ]  # fmt: skip

    return some(60, 0.2), some(90, 0.8)


@pytest.fixture(scope="module")
def cases(server_url: str, template_database: str, dbt_target: Path) -> Iterator[Database]:
    with database_named("allocated", server_url, template_database) as database:
        for name, (counted, beside) in (CASES | {f"random {n}": random_usage(n) for n in range(3)}).items():
            load(database, connection(database, org=name), counted)
            load(database, connection(database, org=name, name="gateway", source="gateway"), beside)
        load(database, connection(database, org="one source"), [tokens(100, team="A")])
        success, says = run_dbt(
            database,
            dbt_target,
            "build",
            "--exclude-resource-type",
            "unit_test",
            "--select",
            *MODELS.split(),
            "--indirect-selection",
            "cautious",
        )
        assert success, says[-4000:]
        yield database


def allocated(database: Database, org: str, columns: str = "total_tokens", dimension: str = "team") -> list[tuple]:
    found = rows(
        database,
        f"SELECT t.name AS team, a.basis, {columns} FROM daily_usage_allocation AS a JOIN app.organizations AS o ON o.id = a.org_id "
        "LEFT JOIN app.teams AS t ON t.id::text = a.value WHERE o.name = %s AND a.dimension = %s ORDER BY a.model, a.currency, a.basis, t.name",
        org,
        dimension,
    )
    return [tuple(row.values()) for row in found]


def test_the_gateways_teams_share_what_it_saw_and_the_rest_is_unattributed(cases):
    """Correction 11: the specification adds both sources up, 180 tokens where 100 were used."""
    assert allocated(cases, "seen in part", "source, total_tokens, request_count") == [
        ("A", "allocated", "gateway", 60, 6),
        ("B", "allocated", "gateway", 20, 3),
        (None, "unattributed", "provider_api", 20, 0),
    ]
    assert allocated(cases, "seen in part", dimension="user") == [(None, "unattributed", 100)]
    total = "SELECT sum(total_tokens) FROM {} AS u JOIN app.organizations AS o ON o.id = u.org_id WHERE o.name = 'seen in part'"
    assert one(cases, total.format("daily_usage_rollup")) == 100
    assert one(cases, total.format("raw.usage_records")) == 180


def test_what_the_gateway_saw_beyond_the_providers_total_is_scaled_down(cases):
    assert allocated(cases, "seen too much", "total_tokens, request_count") == [("A", "allocated", 75, 1), ("B", "allocated", 25, 1), (None, "unattributed", 0, 1)]  # fmt: skip


def test_what_the_gateway_itself_cannot_name_stays_unattributed(cases):
    assert allocated(cases, "named by nobody") == [("A", "allocated", 60), (None, "unattributed", 40)]


def test_what_the_source_that_counts_attributes_itself_is_left_alone(cases):
    assert allocated(cases, "the provider knows") == [("A", "allocated", 30), ("Own", "direct", 70)]


def test_unknown_requests_stay_unknown_and_are_spread_by_tokens_where_only_the_gateway_does_not_count_them(cases):
    assert allocated(cases, "requests unknown", "request_count") == [("A", "allocated", None)]
    assert allocated(cases, "requests unknown beside", "request_count") == [
        ("A", "allocated", 15),
        ("B", "allocated", 5),
        (None, "unattributed", 30),
    ]


def test_cost_follows_what_each_ones_usage_costs_and_not_its_tokens(cases):
    """gpt-4o: 2.50 dollars for a million tokens sent, 10 for a million received."""
    assert allocated(cases, "by what it cost", "estimated_cost") == [
        ("A", "allocated", Decimal("2.5")),
        ("B", "allocated", Decimal("1")),
    ]


def test_shares_that_do_not_divide_add_up_all_the_same(cases):
    assert allocated(cases, "thirds") == [
        ("A", "allocated", 7),
        ("B", "allocated", 7),
        ("C", "allocated", 7),
        (None, "unattributed", 79),
    ]
    assert sum(row[2] for row in allocated(cases, "thirds", "request_count")) == 1


def test_models_meet_under_their_canonical_name_and_each_is_spread_by_itself(cases):
    assert allocated(cases, "another model", "model, total_tokens") == [
        ("A", "allocated", "gpt-4o", 100),
        (None, "unattributed", "o3", 5),
    ]


def test_currencies_share_what_was_seen_and_keep_their_own_amounts(cases):
    assert allocated(cases, "two currencies", "a.currency, total_tokens, estimated_cost") == [
        ("A", "allocated", "EUR", 30, 3),
        (None, "unattributed", "EUR", 30, 3),
        ("A", "allocated", "USD", 20, 4),
        (None, "unattributed", "USD", 20, 4),
    ]


def test_an_organisation_with_one_source_has_nothing_to_allocate(cases):
    assert allocated(cases, "one source") == []


@pytest.mark.parametrize("measure", ["input_tokens", "output_tokens", "request_count", "estimated_cost"])
def test_every_dimension_adds_up_to_the_rollup_exactly(cases, measure):
    found = rows(
        cases,
        f"SELECT o.name, a.dimension, sum(a.{measure}) - (SELECT sum(d.{measure}) FROM daily_usage_rollup AS d WHERE d.org_id = a.org_id) AS off "
        "FROM daily_usage_allocation AS a JOIN app.organizations AS o ON o.id = a.org_id WHERE starts_with(o.name, 'random') GROUP BY o.name, a.org_id, a.dimension",
    )
    assert len(found) == 18
    assert {row["off"] for row in found} == {0}
    assert one(cases, f"SELECT count(*) FROM daily_usage_allocation WHERE basis = 'allocated' AND {measure} > 0") > 50


def test_a_second_source_that_comes_later_and_a_change_of_authority_are_followed(database, build):
    api = connection(database)
    load(database, api, [tokens(100)])
    build()
    assert allocated(database, "acme") == []
    gateway = connection(database, name="gateway", source="gateway")
    load(database, gateway, [tokens(80, team="A")], kind="import")
    build()
    assert allocated(database, "acme") == [("A", "allocated", 80), (None, "unattributed", 20)]
    load(database, gateway, [tokens(50, team="B")], kind="import")
    build()
    incremental = allocated(database, "acme", "total_tokens, request_count, estimated_cost")
    assert [row[:3] for row in incremental] == [("B", "allocated", 50), (None, "unattributed", 50)]
    build("run", "--full-refresh")
    assert allocated(database, "acme", "total_tokens, request_count, estimated_cost") == incremental
    with database.connect() as db:
        set_authority(db, api.org_id, "openai", "gateway")
    build()
    assert allocated(database, "acme") == [("B", "direct", 50)]


def test_the_check_notices_a_token_that_went_missing(cases, dbt_target):
    select = ("test", "--select", "allocation_agrees_with_rollup")
    assert run_dbt(cases, dbt_target, *select)[0]
    with psycopg.connect(cases.url) as db:
        db.execute(
            "UPDATE intermediate.int_connection_attribution_days SET input_tokens = input_tokens - 1 WHERE value IS NULL AND dimension = 'team'"
        )
        db.commit()
        assert not run_dbt(cases, dbt_target, *select)[0]
        db.execute(
            "UPDATE intermediate.int_connection_attribution_days SET input_tokens = input_tokens + 1 WHERE value IS NULL AND dimension = 'team'"
        )


def test_the_query_of_the_page_runs(cases):
    (query,) = re.findall(r"```sql\n(SELECT[^`]*daily_usage_allocation[^`]*)```", PAGE.read_text(encoding="utf-8"))
    found = rows(cases, query)
    assert {"A", "B", "Own", "(unattributed)"} <= {row["team"] for row in found}


def test_the_command_shows_the_totals_under_the_names_of_the_other_source(cases: Database, monkeypatch, tmp_path: Path):
    (words,) = re.findall(r"```sh\n(tokentra allocation [^\n]*)\n```", PAGE.read_text(encoding="utf-8"))
    monkeypatch.setenv("TOKENTRA_DATABASE_URL", cases.url)
    monkeypatch.setenv("TOKENTRA_HOME", str(tmp_path))
    asked = words.replace("acme", "'seen in part'")
    shown = CliRunner().invoke(cli, [*shlex.split(asked)[1:], "--json"], catch_exceptions=False)
    items = json.loads(shown.output)["items"]
    assert {(item["value"], item["basis"], item["totalTokens"], item["totalRequests"]) for item in items} == {
        ("A", "allocated", 60, 6), ("B", "allocated", 20, 3), (None, "unattributed", 20, 0),
    }  # fmt: skip
    assert "unattributed" in CliRunner().invoke(cli, shlex.split(asked)[1:]).output
    refused = CliRunner().invoke(cli, [*shlex.split(asked)[1:], "--by", "colour"])
    assert "must be one of team" in str(refused.exception or refused.output)
    refused = CliRunner().invoke(cli, [*shlex.split(asked)[1:], "--from", "2026-06-01T10:00"])
    assert "whole UTC days" in str(refused.exception or refused.output)


def test_the_planner_knows_how_many_rows_are_joined(cases):
    """With one row expected, as of a join by three columns, all that follows was joined row by row: minutes for 60 days."""
    with cases.connect() as db:
        db.execute("ANALYZE intermediate.int_connection_attribution_days")
        (plan,) = db.execute("EXPLAIN (FORMAT JSON) SELECT * FROM daily_usage_allocation").fetchone()["QUERY PLAN"]
    expected = [node["Plan Rows"] for node in nodes_of(plan["Plan"]) if node.get("Subplan Name") == "CTE said"]
    assert expected and expected[0] > one(cases, "SELECT count(*) FROM intermediate.int_connection_attribution_days") / 2


def nodes_of(node: dict) -> Iterator[dict]:
    yield node
    for below in node.get("Plans", []):
        yield from nodes_of(below)
