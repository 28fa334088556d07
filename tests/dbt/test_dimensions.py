"""Names: what means the same resolves to one (correction 43), and what a name was before stays known."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from genai_prices.data import providers

from tests.warehouse_data import DAY, HOUR, connection, load, one, record, rows
from tokentra_dagster.ingest.sync import _store_names
from tokentra_dagster.model_names import model_family
from tokentra_dagster.records import EntityName
from tokentra_dagster.warehouse.directory import ensure_entities

HISTORY = (
    "SELECT name, valid_from IS NULL AS from_ever, is_current FROM dim_name_history "
    "WHERE entity_kind = %s AND entity_id = %s ORDER BY valid_from NULLS FIRST"
)


@pytest.mark.parametrize(
    ("provider", "model", "canonical"),
    [
        ("openai", "gpt-4o", "gpt-4o"),
        ("openai", "gpt-4o-2024-08-06", "gpt-4o"),
        ("openai", "chatgpt-4o-latest", "chatgpt-4o"),
        ("openai", "gpt-4-0613", "gpt-4"),
        ("openai", "gpt-4-0125-preview", "gpt-4-0125-preview"),
        ("openai", "o1-preview-2024-09-12", "o1-preview"),
        ("openai", "ft:gpt-4o-mini-2024-07-18:acme::abc", "ft:gpt-4o-mini-2024-07-18:acme::abc"),
        ("anthropic", "claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("google", "publishers/google/models/gemini-2.5-flash-lite-001", "gemini-2.5-flash-lite"),
        ("google", "claude-opus-4-5@20251101", "claude-opus-4-5"),
        ("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "claude-sonnet-4-5"),
        ("aws", "arn:aws:bedrock:us-east-1::foundation-model/us.meta.llama3-1-70b-instruct-v1:0", "llama3-1-70b-instruct"),
        ("aws", "arn:aws:bedrock:us-east-1:1:provisioned-model/abc", "arn:aws:bedrock:us-east-1:1:provisioned-model/abc"),
        ("azure", "gpt-35-turbo-0125", "gpt-3.5-turbo"),
        ("openai", " ", None),
    ],
)
def test_a_model_has_one_canonical_name(database, provider, model, canonical):
    assert one(database, "SELECT app.canonical_model(%s, %s)", provider, model) == canonical


def test_canonical_names_are_stable_and_keep_the_family(database):
    """Over every model of the price list: canonical of canonical is itself, and the family is the same."""
    names = {"openai": "openai", "anthropic": "anthropic", "google": "google", "azure": "azure", "aws": "aws"}
    models = [(p.id, m.id) for p in providers if p.id in names for m in p.models]
    assert len(models) > 100
    with database.connect() as db:
        for provider, model in models:
            row = db.execute(
                "SELECT app.canonical_model(%(p)s, %(m)s) AS name, app.canonical_model(%(p)s, app.canonical_model(%(p)s, %(m)s)) AS again",
                {"p": provider, "m": model},
            ).fetchone()
            assert row["name"] == row["again"], model
            assert model_family(provider, row["name"]) == model_family(provider, model)


def test_aliases_give_models_and_environments_one_name_and_the_original_stays(database, build):
    """Correction 43: the specification counts `prod` and `production`, `gpt-4o` and `gpt-4o-2024-08-06` apart."""
    acme, globex = connection(database), connection(database, org="globex")
    items = [
        record(model="gpt-4o", environment="prod"),
        record(model="gpt-4o-2024-08-06", environment="Production"),
        record(model="our-proxy/gpt4o", environment="live"),
        record(model="o3", environment="blue"),
    ]
    for row in (acme, globex):
        load(database, row, items)
    with database.connect() as db:
        db.execute("INSERT INTO app.model_aliases (alias, canonical) VALUES ('our-proxy/*', 'gpt-4o')")
        db.execute(
            "INSERT INTO app.environment_aliases (org_id, alias, canonical) VALUES (%(org)s, 'bl*', 'production'), (%(org)s, 'live', 'live')",
            {"org": globex.org_id},
        )
        db.execute(
            "INSERT INTO app.model_aliases (org_id, provider, alias, canonical) VALUES (%s, 'openai', 'our-proxy/gpt4o', 'proxy')",
            [globex.org_id],
        )
    build()

    def by_canonical(org_id, dimension: str, column: str) -> dict[str, int]:
        found = rows(
            database,
            f"SELECT d.canonical_{column} AS name, sum(u.request_count)::int AS requests FROM daily_usage_rollup AS u "
            f"JOIN {dimension} AS d ON d.org_id = u.org_id AND d.{column} = u.{column}"
            + (" AND d.provider = u.provider" if column == "model" else "")
            + " WHERE u.org_id = %s GROUP BY 1",
            org_id,
        )
        return {r["name"]: r["requests"] for r in found}

    assert by_canonical(acme.org_id, "dim_models", "model") == {"gpt-4o": 3, "o3": 1}
    assert by_canonical(globex.org_id, "dim_models", "model") == {"gpt-4o": 2, "proxy": 1, "o3": 1}
    assert by_canonical(acme.org_id, "dim_environments", "environment") == {"production": 3, "blue": 1}
    assert by_canonical(globex.org_id, "dim_environments", "environment") == {"production": 3, "live": 1}
    spec = "SELECT count(DISTINCT model) AS models, count(DISTINCT environment) AS environments FROM daily_usage_rollup"
    assert rows(database, spec) == [{"models": 4, "environments": 4}]
    dated = "SELECT model_family, first_seen::text, is_used, is_billed FROM dim_models WHERE org_id = %s AND model = 'gpt-4o-2024-08-06'"
    assert rows(database, dated, acme.org_id) == [
        {"model_family": "gpt-4o", "first_seen": "2026-06-01", "is_used": True, "is_billed": False}
    ]


def test_users_and_keys_are_those_that_a_provider_or_usage_names(database, build):
    row = connection(database)
    with database.connect() as db:
        _store_names(
            db,
            row,
            [
                EntityName(kind="user", id="user-1", name="Ann", metadata={"email": "ann@acme.example"}),
                EntityName(kind="service_account", id="svc-1", name=None),
                EntityName(kind="api_key", id="key-1", name="ci"),
            ],
        )
    load(
        database,
        row,
        [record(user_id="user-1", api_key_id="key-1"), record(DAY + 2 * HOUR, user_id="gone", api_key_id="deleted")],
    )
    build()
    users = rows(database, "SELECT user_id, display_name, email, kind, last_seen::text AS seen FROM dim_users ORDER BY user_id")
    assert [tuple(r.values()) for r in users] == [
        ("gone", None, None, None, "2026-06-01"),
        ("svc-1", None, None, "service_account", None),
        ("user-1", "Ann", "ann@acme.example", "user", "2026-06-01"),
    ]
    keys = rows(database, "SELECT api_key_id, api_key_name, first_seen::text AS seen FROM dim_api_keys ORDER BY api_key_id")
    assert [tuple(r.values()) for r in keys] == [("deleted", None, "2026-06-01"), ("key-1", "ci", "2026-06-01")]


def test_a_renamed_entity_keeps_its_old_name_and_its_usage_is_not_multiplied(database, build):
    row = connection(database)
    load(database, row, [record(team="search", project="crawler", cost_center="4711")])
    with database.connect() as db:
        db.execute("UPDATE app.teams SET name = 'discovery'")
        db.execute("UPDATE app.projects SET name = 'crawler'")
        _store_names(db, row, [EntityName(kind="api_key", id="key-1", name="ci")])
    with database.connect() as db:
        _store_names(db, row, [EntityName(kind="api_key", id="key-1", name="ci", metadata={"status": "active"})])
    with database.connect() as db:
        _store_names(db, row, [EntityName(kind="api_key", id="key-1", name="deploy")])
    build()
    team = one(database, "SELECT team_id FROM dim_teams WHERE team_name = 'discovery'")
    assert [tuple(r.values()) for r in rows(database, HISTORY, "team", str(team))] == [
        ("search", True, False),
        ("discovery", False, True),
    ]
    assert [tuple(r.values()) for r in rows(database, HISTORY, "provider_api_key", "key-1")] == [
        ("ci", True, False),
        ("deploy", False, True),
    ]
    assert len(rows(database, "SELECT 1 FROM dim_name_history WHERE entity_kind IN ('project', 'cost_center')")) == 2
    joined = "SELECT sum(u.request_count) FROM daily_usage_rollup AS u JOIN dim_teams USING (team_id) JOIN dim_projects USING (project_id) JOIN dim_cost_centers USING (cost_center_id)"
    assert one(database, joined) == 1
    gaps = "SELECT count(*) FROM (SELECT valid_from, lag(valid_to) OVER (PARTITION BY entity_kind, entity_id ORDER BY valid_from NULLS FIRST) AS before FROM dim_name_history) AS h WHERE valid_from IS DISTINCT FROM before"
    assert one(database, gaps) == 0


def test_a_rename_that_waited_for_another_comes_after_it(database):
    """Two renames whose transactions overlap: the one that began first commits last, and its name is today's."""
    row = connection(database)
    with database.connect() as db:
        (team,) = ensure_entities(db, row.org_id, "team", ["one"]).values()
    with psycopg.connect(database.url) as first, psycopg.connect(database.url) as second:
        first.execute("SELECT now()")
        second.execute("UPDATE app.teams SET name = 'two' WHERE id = %s", [team])
        second.commit()
        first.execute("UPDATE app.teams SET name = 'three' WHERE id = %s", [team])
        first.commit()
    found = rows(
        database,
        "SELECT name, valid_to IS NULL AS now FROM app.entity_names WHERE entity_id = %s ORDER BY valid_from NULLS FIRST",
        team,
    )
    assert [tuple(r.values()) for r in found] == [("one", False), ("two", False), ("three", True)]


def test_the_statements_in_the_documentation_run(database, build):
    row = connection(database)
    load(database, row, [record(model=model, input_tokens=1, output_tokens=0) for model in ("gpt-4o", "gpt-4o-2024-08-06")])
    build("run", "--select", "+dim_models", "+daily_usage_rollup")
    text = (Path(__file__).parents[2] / "docs" / "marts.md").read_text()
    statements = [part.split("```")[0] for part in text.split("```sql\n")[1:]]
    (of_allocation,), (models, rates) = statements[:1], statements[1:]
    assert "daily_usage_allocation" in of_allocation, "run in test_allocation.py"
    assert rows(database, models) == [{"canonical_model": "gpt-4o", "sum": 2}]
    with database.connect() as db:
        assert db.execute(rates).rowcount == 1
