"""Attribution rules at load time and applied again to history (specification 9; design, "Sync")."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.warehouse_data import DAY, HOUR, connection, load, one, record, rows
from tokentra_dagster.errors import UsageError
from tokentra_dagster.ingest.attribution import FILLED, KEY_COLUMNS, MATCH_COLUMNS, Attribution, Rule
from tokentra_dagster.ingest.reattribute import apply_rules
from tokentra_dagster.warehouse.directory import add_rule

LABELS = (
    "SELECT u.model, t.name AS team, p.name AS project, c.name AS cost_center, u.feature, u.environment FROM raw.usage_records AS u "
    "LEFT JOIN app.teams AS t ON t.id = u.team_id LEFT JOIN app.projects AS p ON p.id = u.project_id "
    "LEFT JOIN app.cost_centers AS c ON c.id = u.cost_center_id ORDER BY u.timestamp"
)


def _rule(database, **fields):
    with database.connect() as db:
        return add_rule(db, org="acme", **fields)


def test_the_first_match_by_priority_fills_each_field(database):
    row = connection(database)
    _rule(database, match_field="project", match_value="proj_search", priority=10, team="Search", project="Search API")
    _rule(database, match_field="model", match_value="gpt-4o*", priority=20, team="Platform", cost_center="CC-1")
    _rule(database, match_field="user", match_value="user-1", priority=5, environment="staging")
    _rule(database, match_field="api_key", match_value="key_x", priority=30, feature="chat", environment="production")
    load(
        database, row,
        [
            record(DAY, provider_project_id="proj_search", api_key_id="key_x", user_id="user-1"),
            record(DAY + HOUR, provider_project_id="proj_other", api_key_id="key_x"),
            record(DAY + 2 * HOUR, model="o3-2025-04-16"),
        ],
    )  # fmt: skip
    first, second, third = rows(database, LABELS)
    assert first == {
        "model": "gpt-4o-2024-08-06", "team": "Search", "project": "Search API", "cost_center": "CC-1", "feature": "chat", "environment": "staging",
    }  # fmt: skip
    assert (second["team"], second["project"], second["environment"]) == ("Platform", None, "production")
    assert [third[name] for name in ("team", "project", "cost_center", "feature", "environment")] == [None] * 5


def test_a_rule_may_use_the_providers_name_for_an_id(database):
    row = connection(database)
    with database.connect() as db:
        db.execute(
            "INSERT INTO raw.provider_entities (provider_connection_id, org_id, provider, kind, entity_id, name) "
            "VALUES (%s, %s, 'openai', 'project', 'proj_1', 'Search (prod)')",
            [row.id, row.org_id],
        )
    _rule(database, match_field="project", match_value="Search*", team="Search")
    load(database, row, [record(provider_project_id="proj_1")])
    assert rows(database, LABELS)[0]["team"] == "Search"


def test_what_the_source_itself_says_wins_and_new_teams_are_made_once_per_organisation(database):
    row, other = connection(database), connection(database, org="globex")
    _rule(database, match_field="model", match_value="*", team="By rule", environment="production")
    for target in (row, other, row):
        load(database, target, [record(team="Own team", environment="dev")])
    assert {(r["team"], r["environment"]) for r in rows(database, LABELS)} == {("Own team", "dev")}
    assert one(database, "SELECT count(*) FROM app.teams WHERE name = 'Own team'") == 2


def test_rules_are_applied_again_to_history_and_only_what_differs_is_written(database):
    row, other = connection(database), connection(database, org="globex")
    items = [record(DAY + n * HOUR, provider_project_id=f"proj_{n % 2}") for n in range(4)] + [record(DAY + 5 * HOUR, team="Own")]
    load(database, row, items)
    load(database, other, items)
    _rule(database, match_field="project", match_value="proj_1", team="Search", feature="answers")
    _rule(database, match_field="model", match_value="*", priority=900, team="Rest")
    assert apply_rules(database, row.org_id) == {row.label: 4}
    assert [r["team"] for r in rows(database, LABELS.replace("ORDER", f"WHERE u.org_id = '{row.org_id}' ORDER"))] == [
        "Rest",
        "Search",
    ] * 2 + ["Own"]
    change = rows(database, "SELECT * FROM raw.usage_changes WHERE reason = 'attribution'")
    assert [(r["window_start"], r["window_end"]) for r in change] == [(DAY, DAY + 4 * HOUR)]
    assert apply_rules(database, row.org_id) == {row.label: 0}
    assert one(database, f"SELECT count(*) FROM raw.usage_records WHERE org_id = '{other.org_id}' AND feature IS NOT NULL") == 0


def test_history_attributed_again_equals_history_loaded_again(database):
    row = connection(database)
    items = [record(DAY + n * HOUR, provider_project_id=f"proj_{n % 3}", user_id=f"user-{n % 2}") for n in range(12)]
    load(database, row, items)
    _rule(database, match_field="project", match_value="proj_1", team="A", environment="production")
    _rule(database, match_field="user", match_value="user-1", priority=50, team="B", feature="f")
    apply_rules(database, row.org_id)
    applied = rows(database, LABELS)
    load(database, row, items)
    assert rows(database, LABELS) == applied


def test_a_rule_that_fills_nothing_or_matches_an_unknown_field_is_refused(database):
    connection(database)
    with pytest.raises(UsageError, match="team"):
        _rule(database, match_field="model", match_value="x")
    with pytest.raises(UsageError, match="project, workspace, api_key, user, model"):
        _rule(database, match_field="colour", match_value="x", team="A")


VALUES = st.sampled_from([None, "a", "ab", "b*", "proj_1", ""])
RULES = st.builds(
    Rule, priority=st.just(1), match_field=st.sampled_from(sorted(MATCH_COLUMNS)), match_value=st.sampled_from(["a", "a*", "*", "proj_?", "[ab]", "zz"]),
    feature=st.sampled_from([None, "f1", "f2"]), environment=st.sampled_from([None, "e1"]),
)  # fmt: skip


@given(st.lists(RULES, max_size=6), st.lists(st.fixed_dictionaries(dict.fromkeys(KEY_COLUMNS, VALUES)), min_size=1, max_size=8))
def test_column_by_column_is_the_same_as_rule_by_rule(rules, keys):
    names = {("provider_project_id", "b*"): "ab"}
    answers = Attribution(rules, names).columns(
        {name: pa.array([row[name] for row in keys], pa.string()) for name in KEY_COLUMNS}
    )
    for index, row in enumerate(keys):
        for target in FILLED:
            matching = (
                getattr(rule, target)
                for rule in rules
                if getattr(rule, target) is not None
                and rule.matches(
                    row[MATCH_COLUMNS[rule.match_field]],
                    names.get((MATCH_COLUMNS[rule.match_field], row[MATCH_COLUMNS[rule.match_field]])),
                )
            )
            assert answers[target][index].as_py() == next(matching, None)
