"""docs/quotas.md is true: what it shows runs, in its order, and does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

from tests.warehouse_data import connection, one, rows

PAGE = (Path(__file__).parents[2] / "docs" / "quotas.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SQL = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)


def test_the_statements_run_in_order_and_settle_what_was_reserved(database):
    connection(database, org="acme")
    answers = []
    reservation = "NULL"
    with database.connect(autocommit=True) as db:
        for statement in SQL:
            done = db.execute(statement.replace(":'reservation_id'", reservation))
            found = done.fetchall() if done.description else []
            answers.append(found)
            if found and "reservation_id" in found[0]:
                reservation = f"'{found[0]['reservation_id']}'"
    _, checked, reserved, settled, released, _, rebuilt = answers
    assert checked[0]["allowed"] and len(checked[0]["applicable_quotas"]) == 1
    assert reserved[0]["allowed"] and reserved[0]["expires_at"]
    assert settled == [{"state": "settled", "changed": True, "was_expired": False}]
    assert released == [{"state": "settled", "changed": False}]
    assert {row["measure"]: (row["counted"], row["difference"]) for row in rebuilt} == {
        "tokens": (2627, 0), "requests": (1, 0), "input_tokens": (1987, 0), "output_tokens": (640, 0),
    }  # fmt: skip


def test_the_python_example_settles_what_was_used_and_answers_a_refusal(database):
    org = connection(database, org="acme").org_id
    with database.connect(autocommit=True) as db:
        db.execute(SQL[0])
        names: dict = {}
        exec(PYTHON[0], names)
        reply = SimpleNamespace(input_tokens=10, output_tokens=5)
        assert names["answer"](db, org, 20, lambda: reply) is reply
        assert rows(database, "SELECT used_tokens, reserved_tokens FROM quota_counters") == [
            {"used_tokens": 15, "reserved_tokens": 0}
        ]
        refused = names["answer"](db, org, 100_000, lambda: 1 / 0)
    assert refused.startswith("The request is blocked: quota ann a day allows 100000 tokens until ")
    assert one(database, "SELECT count(*) FROM quota_events") == 1


def test_the_signatures_are_those_of_the_database(database):
    found = rows(
        database,
        "SELECT proname::text AS name, pg_get_function_identity_arguments(oid) AS arguments FROM pg_proc "
        "WHERE pronamespace = 'app'::regnamespace AND (prosecdef OR proname = 'rebuild_quota_counters') AND proname <> 'reader_org_ids'",
    )
    documented = dict(re.findall(r"^`(\w+)\((p_.*)\)`$", PAGE, re.MULTILINE))
    assert documented == {row["name"]: row["arguments"].split(", quota_id uuid")[0] for row in found}
