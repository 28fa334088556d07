"""Quotas for tests, set with SQL, and the specification's own way of counting them (sections 2.7 and 8), to hold against ours."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from tests.warehouse_data import DAY, one, rows
from tokentra_dagster.warehouse.database import Database


def quota(database: Database, org_id: UUID, name: str = "q", **columns: Any) -> UUID:
    """Insert a quota; without other columns: 1000 tokens a day for the organisation since DAY."""
    limits = [column for column in columns if column.endswith("_limit")]
    values = {"scope_type": "organization", "period_type": "daily", "created_at": DAY} | columns
    values |= {"org_id": org_id, "name": name} | ({} if limits else {"token_limit": 1000})
    marks = ", ".join(["%s"] * len(values))
    return one(
        database, f"INSERT INTO usage_quotas ({', '.join(values)}) VALUES ({marks}) RETURNING id", *values.values()
    )  # fmt: skip


def change(database: Database, quota_id: UUID, at: datetime, **columns: Any) -> None:
    """Change a quota as if it had happened at that moment: its newest version then begins there."""
    sets = ", ".join(f"{column} = %s" for column in columns)
    with database.connect() as db:
        db.execute(f"UPDATE usage_quotas SET {sets} WHERE id = %s", [*columns.values(), quota_id])
        db.execute("UPDATE usage_quota_versions SET valid_to = %s WHERE quota_id = %s AND valid_to = now()", [at, quota_id])
        db.execute("UPDATE usage_quota_versions SET valid_from = %s WHERE quota_id = %s AND valid_to IS NULL", [at, quota_id])


def delete(database: Database, quota_id: UUID, at: datetime) -> None:
    """Delete a quota as if it had happened at that moment."""
    with database.connect() as db:
        db.execute("DELETE FROM usage_quotas WHERE id = %s", [quota_id])
        db.execute("UPDATE usage_quota_versions SET valid_to = %s WHERE quota_id = %s AND valid_to = now()", [at, quota_id])


def history(database: Database, quota_id: UUID, columns: str = "period_start, total_tokens", where: str = "true") -> list[tuple]:
    found = rows(
        database, f"SELECT {columns} FROM quota_usage_history WHERE quota_id = %s AND {where} ORDER BY period_start", quota_id
    )
    return [tuple(row.values()) for row in found]


def status_at(database: Database, moment: datetime) -> dict[str, dict[str, Any]]:
    """Name of each active quota -> its row of quota_status as of the moment."""
    return {row["s"]["quota_name"]: row["s"] for row in rows(database, "SELECT quota_status_at(%s) AS s", moment)}


def specification_usage(database: Database, row: dict[str, Any], start: datetime, end: datetime) -> dict[str, int]:
    """`calculateUsageForQuota` of section 8: its query, with its switch over the scope."""
    filters = {"team": "team_id", "project": "project_id", "feature": "feature", "api_key": "api_key_id"}
    column = filters.get(row["scope_type"])
    return rows(
        database,
        "SELECT coalesce(sum(total_tokens), 0)::bigint AS tokens, coalesce(sum(input_tokens), 0)::bigint AS input, "
        "coalesce(sum(output_tokens), 0)::bigint AS output, coalesce(sum(request_count), 0)::bigint AS requests "
        "FROM usage_records WHERE org_id = %s AND timestamp >= %s AND timestamp < %s" + (f" AND {column} = %s" if column else ""),
        *([row["org_id"], start, end] + ([row[column]] if column else [])),
    )[0]


def specification_status(database: Database, quota_ids: Iterable[UUID], start: datetime, end: datetime) -> dict[UUID, str]:
    """`updateQuotaUsage` of section 8 and the specification's `check_quota_status` (2.7, unchanged but for its schema)."""
    found = {}
    with database.connect() as db:
        db.execute("CREATE SCHEMA IF NOT EXISTS specification")
        db.execute("CREATE TABLE IF NOT EXISTS specification.usage_quotas (LIKE app.usage_quotas)")
        db.execute("ALTER TABLE specification.usage_quotas ALTER current_requests TYPE integer, ALTER request_limit TYPE integer")
        db.execute(SPECIFICATION_FUNCTION)
    for quota_id in quota_ids:
        (row,) = rows(database, "SELECT * FROM app.usage_quotas WHERE id = %s", quota_id)
        usage = specification_usage(database, row, start, end)
        with database.connect() as db:
            db.execute("SET search_path = specification, public")
            db.execute("INSERT INTO usage_quotas SELECT * FROM app.usage_quotas WHERE id = %s", [quota_id])
            db.execute(
                "UPDATE usage_quotas SET current_tokens = %s, current_requests = %s, current_input_tokens = %s, "
                "current_output_tokens = %s, current_period_start = %s, current_period_end = %s WHERE id = %s",
                [usage["tokens"], usage["requests"], usage["input"], usage["output"], start, end, quota_id],
            )
            found[quota_id] = db.execute("SELECT status FROM specification.check_quota_status(%s)", [quota_id]).fetchone()[
                "status"
            ]
    return found


SPECIFICATION_FUNCTION = """
CREATE OR REPLACE FUNCTION specification.check_quota_status(
  p_quota_id UUID
)
RETURNS TABLE (
  quota_id UUID,
  quota_name TEXT,
  scope_type TEXT,
  current_tokens BIGINT,
  token_limit BIGINT,
  token_utilization_pct FLOAT,
  current_requests INTEGER,
  request_limit INTEGER,
  request_utilization_pct FLOAT,
  status TEXT, -- 'ok', 'warning', 'critical', 'exceeded'
  period_remaining_hours INTEGER
)
LANGUAGE plpgsql
AS $$
DECLARE
  v_quota RECORD;
  v_status TEXT;
  v_token_util FLOAT;
  v_request_util FLOAT;
  v_max_util FLOAT;
BEGIN
  SELECT * INTO v_quota FROM usage_quotas WHERE id = p_quota_id;

  -- Calculate utilizations
  v_token_util := CASE
    WHEN v_quota.token_limit IS NOT NULL AND v_quota.token_limit > 0
    THEN (v_quota.current_tokens::FLOAT / v_quota.token_limit * 100)
    ELSE 0
  END;

  v_request_util := CASE
    WHEN v_quota.request_limit IS NOT NULL AND v_quota.request_limit > 0
    THEN (v_quota.current_requests::FLOAT / v_quota.request_limit * 100)
    ELSE 0
  END;

  v_max_util := GREATEST(v_token_util, v_request_util);

  -- Determine status
  v_status := CASE
    WHEN v_max_util >= 100 THEN 'exceeded'
    WHEN v_max_util >= v_quota.critical_threshold_pct THEN 'critical'
    WHEN v_max_util >= v_quota.warning_threshold_pct THEN 'warning'
    ELSE 'ok'
  END;

  RETURN QUERY SELECT
    v_quota.id,
    v_quota.name,
    v_quota.scope_type,
    v_quota.current_tokens,
    v_quota.token_limit,
    v_token_util,
    v_quota.current_requests,
    v_quota.request_limit,
    v_request_util,
    v_status,
    EXTRACT(EPOCH FROM (v_quota.current_period_end - NOW()))::INTEGER / 3600;
END;
$$;
"""
