"""What expires, when, and taking it away (specification 2.2 and 2.3; corrections 2 and 4; docs/decisions/0005).

`plan` decides, from facts alone; `expire` carries it out and `preview` says what it would do. Minute records, all records
(by whole months), hourly rollups and daily rollups each follow their own rule. Never taken: usage that a model has not read
yet, and the window of a running load. A horizon is committed before its records go, so that a crash leaves at most records
that nobody reads any more, which the next run takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from tokentra_dagster.errors import TokenTraError
from tokentra_dagster.settings import RetentionDays
from tokentra_dagster.warehouse.app_retention import expire_app, old_app_rows
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import Connection
from tokentra_dagster.warehouse.partitions import partition_month

RETENTION_LOCK = 7_265_004  # also in dbt_project/macros/retention.sql
LOCK_SECONDS = 60  # for builds to pause
TABLE_LOCK_SECONDS = 10  # for readers of the records: whoever comes meanwhile queues


@dataclass(frozen=True, slots=True)
class Rollup:
    """A model that follows the changes of usage. `window_column` is `hour`, or a day's column; None: its rows never expire."""

    name: str
    schema: str
    window_column: str | None
    kept_longer_days: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """An organisation's records of one provider. `first` is the oldest, `first_minute` the oldest that is a minute's;
    `waits_from`: from there on something must stay, for the reason `why`."""

    org_id: UUID
    provider: str
    label: str
    first: datetime | None
    first_minute: datetime | None
    waits_from: datetime | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """Moments before which things go; None and absence: nothing goes. Whole UTC days; `months` is the first of a month."""

    months: datetime | None
    minutes: Mapping[tuple[UUID, str], datetime]
    hours: datetime | None
    days: datetime | None
    waits: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Removed:
    """One thing that went, or would go: rows before a moment."""

    what: str
    before: datetime
    rows: int
    partition: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "before": self.before.isoformat()}


@dataclass(slots=True)
class Report:
    """What went and what could not go yet, in the order in which it happened."""

    removed: list[Removed] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)


def plan(rules: RetentionDays, now: datetime, usage: Iterable[Usage]) -> Plan:
    """What may go at `now`. Pure. One provider's usage that waits holds back only its own minutes, but everybody's months and
    rollups, which are taken from the oldest on without gaps."""
    usage = list(usage)
    waits: dict[str, None] = {}

    def bounded(days: int | None, those: Iterable[Usage], start: Callable[[datetime], datetime] = day_of) -> datetime | None:
        if days is None:
            return None
        cutoff = start(now - timedelta(days=days))
        for one in those:
            if one.waits_from is not None and one.waits_from < cutoff:
                waits[f"{one.label}: {one.why}"] = None
                cutoff = min(cutoff, start(one.waits_from))
        return cutoff

    minutes = {}
    for one in usage:
        cutoff = bounded(rules.minute, [one])
        if cutoff is not None and one.first_minute is not None and one.first_minute < cutoff:
            minutes[one.org_id, one.provider] = cutoff
    months = bounded(rules.raw, usage, month_of)
    return Plan(months, minutes, bounded(rules.hourly, usage), bounded(rules.daily, usage), tuple(waits))


def day_of(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def month_of(moment: datetime) -> datetime:
    return day_of(moment).replace(day=1)


def preview(database: Database, rules: RetentionDays, rollups: Sequence[Rollup], now: datetime) -> Report:
    """What `expire` would take now; changes nothing."""
    with database.connect(application="tokentra retention") as db:
        usage = read_usage(db, rollups)
        decided = plan(rules, now, usage)
        report = Report(waits=list(decided.waits))
        for rollup, before in _rollup_rules(decided, rollups):
            rows = _count(db, sql.SQL("{} WHERE {}").format(_table(rollup), _older(rollup, before))) if _exists(db, rollup) else 0
            _add(report, f"{rollup.schema}.{rollup.name}", before, rows)
        for one in usage:
            cutoff = decided.minutes.get((one.org_id, one.provider))
            if cutoff:
                rows = _count(db, sql.SQL("raw.usage_records AS r WHERE {}").format(_minutes(one, decided.months, cutoff)))
                _add(report, f"minute records of {one.label}", cutoff, rows)
            if edge := _gone_before(one, decided):
                _add(report, f"events of {one.label}", edge, _count(db, _old_events(one, edge)))
        if decided.months:
            for name, end in _partitions(db):
                if end <= decided.months:
                    report.removed.append(Removed("raw.usage_records", end, _count(db, sql.Identifier("raw", name)), name))
        for what, before, old in old_app_rows(rules, now):
            _add(report, what, before, _count(db, old))
        db.rollback()
    return report


def expire(
    database: Database, rules: RetentionDays, rollups: Sequence[Rollup], now: datetime, run_id: str | None = None
) -> Report:
    """Take what has expired at `now`; a repeat takes nothing more. Raises `TokenTraError` when builds or loads do not pause for
    a minute. Each step commits, and what is left after a crash goes with the next run."""
    report = Report()
    with database.connect(application="tokentra retention") as db:
        history = db.execute("INSERT INTO raw.retention_history (run_id) VALUES (%s) RETURNING id", [run_id]).fetchone()
        db.commit()
        usage, decided = _move_horizons(db, rules, rollups, now, report)
        if decided.months:
            for name, end in _partitions(db):
                if end <= decided.months:
                    _drop_partition(db, name, end, report)
            _clear_leftovers(db, decided.months, report)
        for one in usage:
            cutoff = decided.minutes.get((one.org_id, one.provider))
            if cutoff:
                _add(report, f"minute records of {one.label}", cutoff, _delete_minutes(db, one, cutoff))
            if edge := _gone_before(one, decided):
                with db.transaction():
                    gone = db.execute(sql.SQL("DELETE FROM {}").format(_old_events(one, edge))).rowcount
                _add(report, f"events of {one.label}", edge, gone)
        for what, before, gone in expire_app(db, rules, now):
            _add(report, what, before, gone)
        assert history is not None
        db.execute(
            "UPDATE raw.retention_history SET completed_at = now(), removed = %s, waits = %s WHERE id = %s",
            [Jsonb([removed.as_json() for removed in report.removed]), Jsonb(report.waits), history["id"]],
        )
    return report


def read_usage(db: Connection, rollups: Sequence[Rollup]) -> list[Usage]:
    """What there is, per organisation and provider, and what must wait: changes that some model has not read, running loads."""
    names = [rollup.name for rollup in rollups]
    built = db.execute(
        "SELECT m.name, p.change_number FROM unnest(%s::text[]) AS m (name) LEFT JOIN raw.model_progress AS p ON p.model = m.name "
        "ORDER BY p.change_number NULLS FIRST LIMIT 1",
        [names],
    ).fetchone()
    slowest = built["name"] if built else "no model"
    unbuilt = db.execute(
        "SELECT org_id, provider, min(window_start) AS start FROM raw.usage_changes WHERE change_number > %s GROUP BY org_id, provider",
        [(built and built["change_number"]) or 0],
    )
    waits = {
        (row["org_id"], row["provider"]): (
            row["start"],
            f"{slowest} has not read what changed from {row['start']:%Y-%m-%d %H:%M} UTC on",
        )
        for row in unbuilt
    }
    for row in _running_loads(db):
        key = (row["org_id"], row["provider"])
        if key not in waits or row["window_start"] < waits[key][0]:
            waits[key] = (row["window_start"], f"a load from {row['window_start']:%Y-%m-%d %H:%M} UTC on is running")
    found = db.execute(_USAGE).fetchall()
    return [Usage(**row, **_waiting(waits.get((row["org_id"], row["provider"])))) for row in found]


# Minutes come by a load of that width, or from sources whose width varies: only there is the search for them worth it.
_USAGE = """
SELECT c.org_id, c.provider, min(o.name) || '/' || c.provider AS label, min(oldest.timestamp) AS first,
  min(minute.timestamp) AS first_minute
FROM app.provider_connections AS c
JOIN app.organizations AS o ON o.id = c.org_id
LEFT JOIN LATERAL (
  SELECT r.timestamp FROM raw.usage_records AS r WHERE r.provider_connection_id = c.id ORDER BY r.timestamp LIMIT 1
) AS oldest ON true
LEFT JOIN LATERAL (
  SELECT r.timestamp FROM raw.usage_records AS r WHERE r.provider_connection_id = c.id AND r.granularity = '1m'
    AND (c.source IN ('events', 'gateway') OR EXISTS (
      SELECT FROM raw.sync_history AS h WHERE h.provider_connection_id = c.id AND h.granularity = '1m'))
  ORDER BY r.timestamp LIMIT 1
) AS minute ON true
GROUP BY c.org_id, c.provider ORDER BY label
"""


def _waiting(found: tuple[datetime, str] | None) -> dict[str, Any]:
    return {"waits_from": found[0], "why": found[1]} if found else {}


def _running_loads(db: Connection) -> list[dict[str, Any]]:
    """Loads whose process lives: it holds the connection's lock. The row of one that died says `running` for ever."""
    rows = db.execute(
        "SELECT h.org_id, c.provider, h.window_start, h.provider_connection_id AS id FROM raw.sync_history AS h "
        "JOIN app.provider_connections AS c ON c.id = h.provider_connection_id WHERE h.status = 'running'"
    ).fetchall()
    alive = []
    for row in rows:
        free = db.execute(
            "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0)) AS it_is", [f"tokentra connection {row['id']}"]
        ).fetchone()
        if free is not None and not free["it_is"]:
            alive.append(row)
    return alive


def _move_horizons(
    db: Connection, rules: RetentionDays, rollups: Sequence[Rollup], now: datetime, report: Report
) -> tuple[list[Usage], Plan]:
    """Decide, write down from when on records are complete, and take the rollups' rows, while no model runs and no load begins."""
    try:
        with db.transaction():
            db.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(f"{LOCK_SECONDS}s")))
            db.execute("SELECT pg_advisory_xact_lock(%s)", [RETENTION_LOCK])
            usage = read_usage(db, rollups)
            decided = plan(rules, now, usage)
            for one in usage:
                key = (one.org_id, one.provider)
                if gone := _gone_before(one, decided):
                    db.execute(
                        "INSERT INTO raw.retention_horizon AS h (org_id, provider, kept_from) VALUES (%s, %s, %s) "
                        "ON CONFLICT (org_id, provider) DO UPDATE SET kept_from = excluded.kept_from, updated_at = now() "
                        "WHERE excluded.kept_from > h.kept_from",
                        [*key, gone],
                    )
            for rollup, before in _rollup_rules(decided, rollups):
                if not _exists(db, rollup):
                    continue
                rows = db.execute(sql.SQL("DELETE FROM {} WHERE {}").format(_table(rollup), _older(rollup, before))).rowcount
                if rows:
                    db.execute(
                        "UPDATE raw.model_progress SET rows_from = greatest(rows_from, %s) WHERE model = %s",
                        [before, rollup.name],
                    )
                _add(report, f"{rollup.schema}.{rollup.name}", before, rows)
    except psycopg.errors.LockNotAvailable:
        raise TokenTraError(
            f"Nothing has expired: a build did not pause within {LOCK_SECONDS} seconds. Run `tokentra retention` again when it is done."
        ) from None
    report.waits.extend(decided.waits)
    return usage, decided


def _gone_before(one: Usage, decided: Plan) -> datetime | None:
    """Before when records of this usage go, whole months or only minutes; None: nothing goes."""
    months = decided.months if decided.months and one.first and one.first < decided.months else None
    return max(filter(None, (decided.minutes.get((one.org_id, one.provider)), months)), default=None)


def _old_events(one: Usage, before: datetime) -> sql.Composed:
    """Events whose records are gone. One of them sent again would be refused as expired, so their ids need not be remembered."""
    return sql.SQL(
        "raw.usage_events AS e WHERE e.org_id = {0} AND e.provider = {1} AND e.occurred_at < {2} AND NOT EXISTS (SELECT FROM "
        "raw.pending_usage_events AS p WHERE p.org_id = {0} AND p.provider = {1} AND p.event_number = e.event_number)"
    ).format(sql.Literal(one.org_id), sql.Literal(one.provider), sql.Literal(before))


def _rollup_rules(decided: Plan, rollups: Sequence[Rollup]) -> list[tuple[Rollup, datetime]]:
    found = []
    for rollup in rollups:
        before = decided.hours if rollup.window_column == "hour" else decided.days
        if rollup.window_column and before:
            found.append((rollup, before - timedelta(days=rollup.kept_longer_days)))
    return found


def _delete_minutes(db: Connection, one: Usage, before: datetime) -> int:
    with db.transaction():
        return db.execute(sql.SQL("DELETE FROM raw.usage_records AS r WHERE {}").format(_minutes(one, None, before))).rowcount


def _minutes(one: Usage, start: datetime | None, before: datetime) -> sql.Composed:
    return sql.SQL(
        "r.granularity = '1m' AND r.timestamp >= {} AND r.timestamp < {} AND r.provider_connection_id IN "
        "(SELECT id FROM app.provider_connections WHERE org_id = {} AND provider = {})"
    ).format(
        sql.Literal(start or datetime.min.replace(tzinfo=UTC)), sql.Literal(before), sql.Literal(one.org_id), sql.Literal(one.provider)
    )  # fmt: skip


# Connections whose usage of the partition has not expired, e.g. loaded since by somebody who had none before.
_STAYS = """
SELECT c.id FROM app.provider_connections AS c
LEFT JOIN raw.retention_horizon AS h ON h.org_id = c.org_id AND h.provider = c.provider
WHERE (h.kept_from IS NULL OR h.kept_from < %(end)s)
  AND EXISTS (SELECT FROM {table} AS r WHERE r.provider_connection_id = c.id AND r.timestamp >= coalesce(h.kept_from, '-infinity'))
"""


def _drop_partition(db: Connection, name: str, end: datetime, report: Report) -> None:
    """Drop a month, or delete what expired of it where somebody's usage in it has not."""
    table = sql.Identifier("raw", name)
    try:
        with db.transaction():
            db.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(f"{TABLE_LOCK_SECONDS}s")))
            db.execute("LOCK TABLE raw.usage_records IN ACCESS EXCLUSIVE MODE")
            if db.execute(sql.SQL(_STAYS).format(table=table), {"end": end}).fetchone():
                rows = _delete_expired(db, table, end)
                _add(report, f"raw.{name}", end, rows)
                return
            rows = _count(db, table)
            db.execute(sql.SQL("DROP TABLE {}").format(table))
            report.removed.append(Removed("raw.usage_records", end, rows, name))
    except psycopg.errors.LockNotAvailable:
        report.waits.append(f"{name}: somebody reads or loads usage records; it goes with the next run")


def _clear_leftovers(db: Connection, before: datetime, report: Report) -> None:
    """What the months' going leaves: records that found no partition, and the originals of records that were rejected."""
    with db.transaction():
        _add(report, "raw.usage_records_default", before, _delete_expired(db, sql.SQL("raw.usage_records_default"), before))
        rows = db.execute("DELETE FROM raw.rejected_records WHERE window_end <= %s", [before]).rowcount
        _add(report, "raw.rejected_records", before, rows)


def _delete_expired(db: Connection, table: sql.Composable, before: datetime) -> int:
    statement = sql.SQL(
        "DELETE FROM {} AS r USING raw.retention_horizon AS h WHERE h.org_id = r.org_id AND h.provider = r.provider "
        "AND r.timestamp < least(h.kept_from, %s)"
    )
    return db.execute(statement.format(table), [before]).rowcount


def _partitions(db: Connection) -> list[tuple[str, datetime]]:
    """Monthly partitions and their ends, the oldest first."""
    rows = db.execute(
        "SELECT c.relname AS name FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid "
        "WHERE i.inhparent = 'raw.usage_records'::regclass"
    )
    found = [(row["name"], month) for row in rows if (month := partition_month(row["name"]))]
    return sorted(((name, (month + timedelta(days=32)).replace(day=1)) for name, month in found), key=lambda pair: pair[1])


def _table(rollup: Rollup) -> sql.Identifier:
    return sql.Identifier(rollup.schema, rollup.name)


def _exists(db: Connection, rollup: Rollup) -> bool:
    row = db.execute("SELECT to_regclass(%s) IS NOT NULL AS it_does", [f"{rollup.schema}.{rollup.name}"]).fetchone()
    return row is not None and bool(row["it_does"])


def _older(rollup: Rollup, before: datetime) -> sql.Composed:
    assert rollup.window_column is not None
    edge = before.date() if rollup.window_column.endswith("date") else before
    return sql.SQL("{} < {}").format(sql.Identifier(rollup.window_column), sql.Literal(edge))


def _count(db: Connection, of: sql.Composable) -> int:
    row = db.execute(sql.SQL("SELECT count(*) AS n FROM {}").format(of)).fetchone()
    assert row is not None
    return int(row["n"])


def _add(report: Report, what: str, before: datetime, rows: int) -> None:
    if rows:
        report.removed.append(Removed(what, before, rows))
