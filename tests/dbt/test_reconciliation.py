"""Bills beside usage, sources beside each other, and how much is attributed.

Every case is an organisation of its own in one database, built once: an organisation's reconciliation never depends on another's.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest

from tests.dbt.conftest import run_dbt
from tests.warehouse_data import DAY, HOUR, connection, load, one, record, rows
from tokentra_dagster.ingest.authority import set_authority
from tokentra_dagster.records import CostRecord, Item
from tokentra_dagster.warehouse.database import Database

NEXT_DAY = DAY + 24 * HOUR
# gpt-4o-2024-08-06 costs 2.50 dollars for a million tokens sent.
MILLION = {"input_tokens": 1_000_000, "output_tokens": 0}


def bill(amount: str, model: str | None = "gpt-4o-2024-08-06", day=DAY, **fields) -> CostRecord:
    values = {"line_item": f"{model}, input", "token_type": "input", "model": model} | fields
    return CostRecord(bucket_start=day, bucket_end=day + 24 * HOUR, amount=Decimal(amount), **values)


STORAGE = bill("40", None, line_item="vector store storage", token_type=None, quantity_unit="gibibyte_hours")
SEARCHES = bill("7", "gpt-4o", line_item="gpt-4o, web search", token_type=None, cost_type="web_search")
UNLISTED = record(model="orion-preview-1", **MILLION)
UNPRICED_REQUESTS = record(input_tokens=0, output_tokens=0, quantity=Decimal(5), quantity_unit="requests")
FOUR_MODELS = ("gpt-4o", "gpt-4.1", "gpt-5", "o3")

CASES: dict[str, list[Item]] = {
    "spelled differently": [record(**MILLION), bill("2.50", "gpt-4o")],
    "off by much": [record(**MILLION), bill("22.50")],
    "off by little": [record(input_tokens=100_000_000, output_tokens=0), bill("260")],
    "four models off by cents": [
        *(record(model=model, input_tokens=1, output_tokens=0) for model in FOUR_MODELS),
        *(bill("0.90", model) for model in FOUR_MODELS),
    ],
    "tools and storage": [record(**MILLION), bill("2.50"), STORAGE, SEARCHES],
    "tokens without usage": [record(**MILLION), bill("2.50"), bill("30", "o3")],
    "usage without a bill": [record(**MILLION), bill("2.50"), record(model="o3", **MILLION)],
    "free usage": [record(**MILLION), bill("2.50"), record(model="omni-moderation-latest", **MILLION)],
    "no price": [UNLISTED, bill("9", "orion-preview-1")],
    "no price for requests": [record(**MILLION), UNPRICED_REQUESTS, bill("12.50")],
    "no price, billed too little": [record(input_tokens=4_000_000, output_tokens=0), record(service_tier="x"), bill("2.50")],
    "no bill": [record(**MILLION)],
    "another currency": [record(**MILLION), bill("2.30", currency="EUR")],
}


@pytest.fixture(scope="module")
def cases(server_url: str, template_database: str, dbt_target: Path) -> Iterator[Database]:
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE reconciled TEMPLATE {template_database}")
        admin.execute('ALTER DATABASE reconciled SET search_path = "$user", public, app, raw, marts, analytics')
    database = Database(server_url.rsplit("/", 1)[0] + "/reconciled")
    for name, items in CASES.items():
        load(database, connection(database, org=name), items)
    row = connection(database, org="young")
    load(database, row, [record(**MILLION), bill("50")], now=DAY + timedelta(days=2), settles_after=timedelta(days=3))
    row = connection(database, org="half a day")
    load(database, row, [record(**MILLION), bill("50")], DAY, DAY + 12 * HOUR)
    load(database, row, [], DAY + 18 * HOUR, DAY + 24 * HOUR)
    load(database, row, [record(**MILLION), bill("50")], DAY, DAY + 12 * HOUR)
    load(database, connection(database, org="one bill of two"), [record(**MILLION), bill("2.50")])
    load(database, connection(database, org="one bill of two", name="second"), [record(**MILLION)])
    _dbt(database, dbt_target, "run")
    yield database
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute("DROP DATABASE reconciled WITH (FORCE)")


def _dbt(database: Database, target: Path, *arguments: str, succeeds: bool = True) -> None:
    success, says = run_dbt(database, target, *arguments)
    assert success == succeeds, says[-4000:]


def reconciled(database, org: str, columns: str = "model, billed_amount, usage_cost, difference, unexplained_amount, reason"):
    found = rows(
        database,
        f"SELECT {columns} FROM cost_reconciliation AS r JOIN app.organizations AS o ON o.id = r.org_id "
        "WHERE o.name = %s ORDER BY date, model, r.currency",
        org,
    )
    return [tuple(row.values()) for row in found]


def test_a_bill_and_usage_that_spell_the_model_differently_meet_under_the_canonical_name(cases):
    """Correction 43: `gpt-4o-2024-08-06` in usage and `gpt-4o` in the bill's line item are one model."""
    assert reconciled(cases, "spelled differently") == [("gpt-4o", Decimal("2.50"), Decimal("2.5"), 0, 0, None)]
    assert one(cases, "SELECT count(*) FROM daily_usage_rollup WHERE model = 'gpt-4o'") == 1, "the rollup keeps the spelling"


def test_a_difference_without_a_reason_is_unexplained(cases):
    assert reconciled(cases, "off by much", "difference, unexplained_amount, reason") == [(20, 20, None)]
    assert reconciled(cases, "off by little", "difference, round(difference_pct, 2), reason") == [(10, Decimal("3.85"), None)]


def test_what_the_bill_charges_apart_from_tokens_is_explained_and_token_lines_without_usage_are_not(cases):
    """providers.md 1.3, 2.4: storage, searches and code execution are in the bill; usage counts no tokens for them."""
    assert reconciled(cases, "tools and storage") == [
        ("gpt-4o", Decimal("9.50"), Decimal("2.5"), 7, 0, "billed_not_in_usage"),
        (None, 40, None, 40, 0, "billed_not_in_usage"),
    ]
    assert reconciled(cases, "tokens without usage")[1] == ("o3", 30, None, 30, 30, "billed_not_in_usage")


def test_usage_that_is_not_billed_is_unexplained_unless_it_costs_nothing(cases):
    assert reconciled(cases, "usage without a bill")[1] == ("o3", None, 2, -2, -2, "usage_not_billed")
    assert reconciled(cases, "free usage", "model, difference, reason")[1] == ("omni-moderation", 0, None)


def test_usage_without_a_price_explains_a_higher_bill_and_never_a_lower_one(cases):
    """Correction 44: unpriced is not free. Unpriced requests without tokens do not excuse the bill's token lines."""
    assert reconciled(cases, "no price") == [("orion-preview-1", 9, None, None, 0, "unpriced_model")]
    assert reconciled(cases, "no price", "unpriced_tokens, unpriced_record_count") == [(1_000_000, 1)]
    found = reconciled(cases, "no price for requests")
    assert found == [("gpt-4o", Decimal("12.50"), Decimal("2.5"), 10, 10, "unpriced_model")]
    found = reconciled(cases, "no price, billed too little", "unpriced_record_count, unexplained_amount, reason")
    assert found == [(1, Decimal("-7.5"), None)]


def test_a_day_that_the_provider_may_still_restate_is_provisional(cases):
    assert reconciled(cases, "young") == [("gpt-4o", 50, Decimal("2.5"), Decimal("47.5"), None, "provisional")]
    assert reconciled(cases, "young", "is_provisional") == [(True,)]


def test_a_side_that_was_not_read_is_unknown_and_not_zero(cases):
    assert reconciled(cases, "no bill", "difference, unexplained_amount, reason") == [(None, None, "missing_sync")]
    for org in ("half a day", "one bill of two"):
        assert reconciled(cases, org, "unexplained_amount, reason") == [(None, "missing_sync")]


def test_two_currencies_are_never_subtracted(cases):
    assert reconciled(cases, "another currency", "r.currency, billed_amount, usage_cost, unexplained_amount, reason") == [
        ("EUR", Decimal("2.30"), None, None, "currency_mismatch"),
        ("USD", None, Decimal("2.5"), None, "currency_mismatch"),
    ]


def test_the_check_fails_for_final_days_that_are_off_by_more_than_both_tolerances(cases, dbt_target):
    """`reconciliation_within_tolerance`, on the cases above; the parts of the marts add up to their sources."""
    select = ("--select", "reconciliation_within_tolerance", "reconciliation_agrees_with_sources", "--store-failures")
    _dbt(cases, dbt_target, "test", *select, succeeds=False)
    failures = "SELECT o.name, f.model FROM dbt_test__audit.reconciliation_within_tolerance AS f JOIN app.organizations AS o ON o.id = f.org_id"
    found = {(r["name"], r["model"]) for r in rows(cases, failures)}
    assert found == {
        ("off by much", "gpt-4o"),
        ("off by much", "all models"),
        ("four models off by cents", "all models"),
        ("tokens without usage", "o3"),
        ("tokens without usage", "all models"),
        ("usage without a bill", "o3"),
        ("usage without a bill", "all models"),
        ("no price for requests", "gpt-4o"),
        ("no price for requests", "all models"),
        ("no price, billed too little", "gpt-4o"),
        ("no price, billed too little", "all models"),
    }
    assert one(cases, "SELECT count(*) FROM dbt_test__audit.reconciliation_agrees_with_sources") == 0
    _dbt(cases, dbt_target, "test", *select, "--vars", "reconciliation_tolerance_amount: 30")
    assert one(cases, "SELECT count(*) FROM dbt_test__audit.reconciliation_within_tolerance") == 0


def test_reconciliation_and_coverage_follow_restatements_and_equal_a_full_build(database, build):
    row = connection(database)
    load(database, row, [record(**MILLION), bill("2.50")])
    load(database, row, [record(NEXT_DAY, **MILLION), bill("9", day=NEXT_DAY)], NEXT_DAY, NEXT_DAY + 24 * HOUR)
    build("run")
    load(database, row, [record(NEXT_DAY, **MILLION), bill("2.50", day=NEXT_DAY)], NEXT_DAY, NEXT_DAY + 24 * HOUR)
    build()
    incremental = reconciled(database, "acme", "r.*")
    assert [r[-1] for r in incremental] == [None, None]
    build("run", "--full-refresh", "--select", "+cost_reconciliation")
    assert reconciled(database, "acme", "r.*") == incremental


def test_sources_stand_beside_each_other_and_are_not_summed(database, build):
    """Correction 11: the specification sums what the provider and the gateway both saw."""
    api, gateway = connection(database), connection(database, name="gateway", source="gateway")
    load(
        database,
        api,
        [record(input_tokens=100, output_tokens=0, request_count=4), record(model="o3", input_tokens=5, output_tokens=0)],
    )
    load(database, gateway, [record(model="gpt-4o", input_tokens=90, output_tokens=0, request_count=3)], kind="import")
    partly = connection(database, org="partly"), connection(database, org="partly", name="gateway", source="gateway")
    load(database, partly[0], [record(DAY + n * HOUR, input_tokens=10, output_tokens=0) for n in range(24)])
    for start in (DAY, DAY + 23 * HOUR):
        load(database, partly[1], [record(start, input_tokens=10, output_tokens=0)], start, start + HOUR, kind="import")
    build()
    columns = (
        "model, authoritative_source, other_source, authoritative_total_tokens, other_total_tokens, token_difference, "
        "token_difference_pct, request_difference, reason"
    )

    def found(org: str) -> list[tuple]:
        statement = (
            f"SELECT {columns} FROM usage_reconciliation AS r JOIN app.organizations AS o ON o.id = r.org_id WHERE o.name = %s"
        )
        return sorted(tuple(r.values()) for r in rows(database, statement, org))

    assert found("acme") == [
        ("gpt-4o", "provider_api", "gateway", 100, 90, 10, 10.0, 1, None),
        ("o3", "provider_api", "gateway", 5, 0, 5, 100.0, 1, "only_in_authoritative"),
    ]
    assert found("partly") == [
        ("gpt-4o", "provider_api", "gateway", 240, 20, 220, pytest.approx(91.67, abs=0.01), 22, "missing_sync")
    ]
    assert one(database, "SELECT sum(total_tokens) FROM daily_usage_rollup") == 345
    assert one(database, "SELECT sum(total_tokens) FROM raw.usage_records") == 345 + 90 + 20, "the specification's sum"
    with database.connect() as db:
        set_authority(db, api.org_id, "openai", "gateway")
    assert found("acme") == [
        ("gpt-4o", "gateway", "provider_api", 90, 100, -10, pytest.approx(-11.11, abs=0.01), -1, None),
        ("o3", "gateway", "provider_api", 0, 5, -5, None, -1, "only_in_other"),
    ]


def test_coverage_says_how_much_of_each_dimension_is_attributed(database, build):
    whole = {"output_tokens": 0, "request_count": None}
    items = [
        record(input_tokens=300, team="search", user_id="ann", api_key_id="k1", **whole),
        record(input_tokens=100, user_id="bob", model="orion-preview-1", **whole),
        record(DAY + 25 * HOUR, input_tokens=0, **whole),
    ]
    load(database, connection(database), items, end=DAY + 48 * HOUR)
    build()
    found = rows(
        database,
        "SELECT date::text, dimension, attributed_tokens, total_tokens, attributed_tokens_pct, attributed_requests_pct, attributed_cost_pct "
        "FROM attribution_coverage ORDER BY date, dimension",
    )
    assert [tuple(r.values())[1:] for r in found if r["date"] == "2026-06-01"] == [
        ("api_key", 300, 400, 75.0, None, 100.0),
        ("cost_center", 0, 400, 0.0, None, 0.0),
        ("environment", 0, 400, 0.0, None, 0.0),
        ("feature", 0, 400, 0.0, None, 0.0),
        ("project", 0, 400, 0.0, None, 0.0),
        ("team", 300, 400, 75.0, None, 100.0),
        ("user", 400, 400, 100.0, None, 100.0),
    ]
    nothing = [r for r in found if r["date"] == "2026-06-02"]
    assert len(nothing) == 7
    assert {r["attributed_tokens_pct"] for r in nothing} == {None}, "a share of nothing is not 0 per cent"
