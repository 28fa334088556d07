"""What a build did to a model, for a person who wonders why a number moved: how many rows it has, and which changes it took in."""

from __future__ import annotations

from typing import Any

from psycopg import sql

from tokentra_dagster.markdown import table
from tokentra_dagster.warehouse.directory import Connection

_CHANGES = """
SELECT o.name AS organization, c.provider, c.reason, count(*) AS changes, min(c.window_start) AS first, max(c.window_end) AS last
FROM raw.model_progress AS p
JOIN raw.usage_changes AS c ON c.change_number > p.previous_change_number AND c.change_number <= p.change_number
JOIN app.organizations AS o ON o.id = c.org_id
WHERE p.model = %s
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""


def model_evidence(db: Connection, schema: str, model: str) -> dict[str, Any]:
    """`rows` of a table, `up_to_change` (its number in `raw.usage_changes`) and `changes_taken_in`, a row per organisation,
    provider and reason with the span that they touch. Empty for views and models that follow no changes."""
    progress = db.execute("SELECT change_number FROM raw.model_progress WHERE model = %s", [model]).fetchone()
    if progress is None:
        return {}
    rows = db.execute(sql.SQL("SELECT count(*) AS n FROM {}").format(sql.Identifier(schema, model))).fetchone()
    assert rows is not None
    return {
        "rows": rows["n"],
        "up_to_change": progress["change_number"],
        "changes_taken_in": db.execute(_CHANGES, [model]).fetchall(),
    }


def changes_table(changes: list[dict[str, Any]]) -> str:
    """Markdown, a row per organisation, provider and reason."""
    columns = ("organization", "provider", "reason", "changes", "first", "last")
    headings = ["organisation", "provider", "reason", "changes", "from (UTC)", "to"]
    return table(headings, ([change[name] for name in columns] for change in changes), empty="Nothing has changed.")
