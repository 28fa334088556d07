"""Stored events become usage records, each exactly once (correction 34, docs/decisions/0012).

One transaction takes the events that are not yet records, prices and attributes them like any other usage, copies the records
in, extends what the connection covers and logs the hours that changed. A flush that dies leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from tokentra_dagster.batch import batches_of
from tokentra_dagster.ingest.intake import Intake, LoadResult
from tokentra_dagster.ingest.load import append_records, kept_from, log_change, only_one
from tokentra_dagster.ingest.windows import aligned, ceiling
from tokentra_dagster.realtime.events import FIELDS, record_of
from tokentra_dagster.records import floor
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import Connection, ConnectionRow, connection_for_events
from tokentra_dagster.warehouse.partitions import ensure_partitions
from tokentra_dagster.warehouse.retention import RETENTION_LOCK

EVENTS_PER_TRANSACTION = 20_000
"""Bounds memory, and how long a transaction holds its locks."""
SETTLES_AFTER = timedelta(hours=1)
"""Senders repeat what failed for minutes; what is younger than this is `provisional`, and what comes even later still counts."""
SUMMED = timedelta(days=1)
"""Live usage is of today; sums of the hours of yesterday are kept for clocks that differ."""
MICROSECOND = timedelta(microseconds=1)

_PENDING = """
SELECT event_number FROM raw.pending_usage_events WHERE org_id = %(org)s AND provider = %(provider)s ORDER BY event_number LIMIT %(most)s
"""
# Whoever deletes an event's row here owns it: another flush waits for that row and then does not find it. Its hour's sums (live
# usage reads them, docs/decisions/0019) are written by the same statement, so an event is in them or on the list, too.
_TAKE = f"""
WITH taken AS (
  DELETE FROM raw.pending_usage_events AS p USING raw.usage_events AS e
  WHERE p.org_id = %(org)s AND p.provider = %(provider)s AND p.event_number IN ({_PENDING}) AND e.event_number = p.event_number
  RETURNING e.*
), old AS (
  DELETE FROM raw.usage_event_hours WHERE org_id = %(org)s AND provider = %(provider)s AND hour < %(summed_from)s
), hours AS (
  INSERT INTO raw.usage_event_hours AS known (org_id, hour, provider, currency, requests, total_tokens, estimated_cost, unpriced_requests)
  SELECT org_id, date_trunc('hour', occurred_at, 'UTC'), provider, currency, count(*), sum(input_tokens + output_tokens),
    sum(estimated_cost), count(*) FILTER (WHERE estimated_cost IS NULL)
  FROM taken WHERE occurred_at >= %(summed_from)s GROUP BY 1, 2, 3, 4
  ON CONFLICT (org_id, hour, provider, currency) DO UPDATE SET requests = known.requests + excluded.requests,
    total_tokens = known.total_tokens + excluded.total_tokens, unpriced_requests = known.unpriced_requests + excluded.unpriced_requests,
    estimated_cost = CASE WHEN num_nonnulls(known.estimated_cost, excluded.estimated_cost) > 0
      THEN coalesce(known.estimated_cost, 0) + coalesce(excluded.estimated_cost, 0) END
)
SELECT received_at, {", ".join(FIELDS)} FROM taken
"""


@dataclass(frozen=True, slots=True)
class Flushed:
    """What a flush did for one organisation and provider. Counts are events; `error` says why the rest waits for the next flush."""

    organization_id: UUID
    provider: str
    connection: str | None
    loaded: int = 0
    rejected: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    error: Exception | None = None


def pending(db: Connection) -> list[tuple[UUID, str]]:
    """Organisations and providers with events that are not yet records."""
    # A loose scan of the key: as many look-ups as there are pairs, however many events wait.
    rows = db.execute(
        """
        WITH RECURSIVE pair AS (
          (SELECT org_id, provider FROM raw.pending_usage_events ORDER BY org_id, provider LIMIT 1)
          UNION ALL
          SELECT following.org_id, following.provider FROM pair CROSS JOIN LATERAL (
            SELECT p.org_id, p.provider FROM raw.pending_usage_events AS p
            WHERE (p.org_id, p.provider) > (pair.org_id, pair.provider) ORDER BY p.org_id, p.provider LIMIT 1
          ) AS following
        )
        SELECT org_id, provider FROM pair
        """
    )
    return [(row["org_id"], row["provider"]) for row in rows]


def flush(
    database: Database, *, run_id: str | None = None, now: datetime | None = None, most: int = EVENTS_PER_TRANSACTION
) -> list[Flushed]:
    """Make records of all events that wait now; a repeat finds none. One organisation's failure never stops another's.

    `now` is for tests, `most` the number of events in one transaction.
    """
    with database.connect() as db:
        waiting = pending(db)
    return [_flush_one(database, org_id, provider, run_id, now, most) for org_id, provider in waiting]


def _flush_one(database: Database, org_id: UUID, provider: str, run_id: str | None, now: datetime | None, most: int) -> Flushed:
    results: list[LoadResult] = []
    label: str | None = None
    error: Exception | None = None
    try:
        with database.connect(application="tokentra flush") as db:
            connection = connection_for_events(db, org_id, provider)
            db.commit()
            label = connection.label
            with only_one(db, connection):
                try:
                    while result := _flush_some(db, database, connection, run_id, now, most):
                        results.append(result)
                        if result.loaded + result.rejected < most:  # what comes meanwhile is the next flush's
                            break
                except BaseException:
                    db.rollback()
                    raise
    except Exception as failure:
        error = failure
    return Flushed(
        org_id, provider, label,
        loaded=sum(result.loaded for result in results),
        rejected=sum(result.rejected for result in results),
        input_tokens=sum(result.input_tokens for result in results),
        output_tokens=sum(result.output_tokens for result in results),
        error=error,
    )  # fmt: skip


def _flush_some(
    db: Connection, database: Database, connection: ConnectionRow, run_id: str | None, now: datetime | None, most: int
) -> LoadResult | None:
    summed_from = floor(now or datetime.now(UTC), "1d") - SUMMED
    whose = {"org": connection.org_id, "provider": connection.provider, "most": most, "summed_from": summed_from}
    _make_partitions(db, whose)
    with db.transaction():
        # As a load does: retention moves its horizon before this transaction or after it.
        db.execute("SELECT pg_advisory_xact_lock_shared(%s)", [RETENTION_LOCK])
        events = db.execute(_TAKE, whose).fetchall()
        if not events:
            return None
        sync_id, since, until = _coverage(db, connection, events, now)
        first, last = (choose(event["occurred_at"] for event in events) for choose in (min, max))
        window = aligned(first, last + MICROSECOND, "1m")
        kept = kept_from(db, connection)
        result = append_records(db, database, connection, window, sync_id, lambda intake: _fill(intake, events, kept))
        _cover(db, connection, sync_id, since, until, result, run_id)
        final = _finish(db, connection, until - SETTLES_AFTER)
        hours = {floor(event["occurred_at"], "1h") for event in events if kept is None or event["occurred_at"] >= kept}
        log_change(
            db, org_id=connection.org_id, provider=connection.provider, connection_id=connection.id, reason="events", sync_id=sync_id,
            windows=spans([*((hour, hour + timedelta(hours=1)) for hour in hours), *final, (floor(since, "1h"), ceiling(until, "1h"))]),
        )  # fmt: skip
    return result


def _make_partitions(db: Connection, whose: dict[str, Any]) -> None:
    """Only the months that events lie in. An event that comes in between finds the default partition (correction 2)."""
    months = db.execute(
        f"SELECT DISTINCT date_trunc('month', occurred_at, 'UTC') AS month FROM raw.usage_events WHERE event_number IN ({_PENDING})",
        whose,
    ).fetchall()
    db.commit()
    for row in months:
        ensure_partitions(db, row["month"], row["month"] + MICROSECOND)


def _fill(intake: Intake, events: Sequence[dict[str, Any]], kept: datetime | None) -> None:
    expired = [event for event in events if kept is not None and event["occurred_at"] < kept]
    for event in expired:
        reason = f"it is older than {kept:%Y-%m-%d}: records from before have expired and are not counted again"
        intake.reject(reason, {name: value for name, value in event.items() if value is not None}, event["occurred_at"])
    counted = events if not expired else [event for event in events if event["occurred_at"] >= kept]
    for batch in batches_of(map(record_of, counted)):
        intake.add(batch)


def _coverage(
    db: Connection, connection: ConnectionRow, events: Sequence[dict[str, Any]], now: datetime | None
) -> tuple[UUID, datetime, datetime]:
    """The history row to write, and what it adds to what is covered: from where the last flush ended, at first from the minute
    in which the first event came, to now. Late events are counted but cover nothing: nobody knows that they are all.

    One row an hour: flushes of one hour extend the same, so that a connection has as many rows as one that is synced hourly.
    """
    moment = now or datetime.now(UTC)
    last = db.execute(
        "SELECT id, window_end FROM raw.sync_history WHERE provider_connection_id = %s AND kind = 'events' ORDER BY window_start DESC LIMIT 1",
        [connection.id],
    ).fetchone()
    if last is None:
        since = floor(min(event["received_at"] for event in events), "1m")
        return uuid4(), since, max(moment, since + MICROSECOND)
    since = last["window_end"]
    until = max(moment, since)
    same_hour = floor(since, "1h") == floor(until, "1h")
    return (last["id"] if same_hour else uuid4()), since, until


def _cover(
    db: Connection,
    connection: ConnectionRow,
    sync_id: UUID,
    since: datetime,
    until: datetime,
    result: LoadResult,
    run_id: str | None,
) -> None:
    values = {
        "id": sync_id, "org": connection.org_id, "connection": connection.id, "since": since, "until": until,
        "final": until - SETTLES_AFTER, "loaded": result.loaded, "rejected": result.rejected, "run": run_id,
    }  # fmt: skip
    extended = db.execute(
        "UPDATE raw.sync_history SET window_end = %(until)s, covered_until = %(until)s, final_before = %(final)s, completed_at = now(), "
        "records_loaded = records_loaded + %(loaded)s, records_rejected = records_rejected + %(rejected)s, run_id = %(run)s WHERE id = %(id)s",
        values,
    ).rowcount
    if not extended:
        db.execute(
            "INSERT INTO raw.sync_history (id, org_id, provider_connection_id, kind, granularity, window_start, window_end, status, "
            "completed_at, covered_until, final_before, records_loaded, records_replaced, records_rejected, run_id) "
            "VALUES (%(id)s, %(org)s, %(connection)s, 'events', '1m', %(since)s, %(until)s, 'completed', now(), %(until)s, %(final)s, "
            "%(loaded)s, 0, %(rejected)s, %(run)s)",
            values,
        )


def _finish(db: Connection, connection: ConnectionRow, final_before: datetime) -> list[tuple[datetime, datetime]]:
    """Mark as final the earlier rows of the connection that are so by now, each once; returns the hours that they cover.

    A sync reads its window again before that is final. Events come by themselves, and nobody reads them again.
    """
    rows = db.execute(
        "UPDATE raw.sync_history SET final_before = %(final)s WHERE provider_connection_id = %(connection)s AND kind = 'events' "
        "AND covered_until <= %(final)s AND final_before < covered_until RETURNING window_start, covered_until",
        {"connection": connection.id, "final": final_before},
    ).fetchall()
    return [(floor(row["window_start"], "1h"), ceiling(row["covered_until"], "1h")) for row in rows]


def spans(windows: Iterable[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """The windows in order, those that touch or overlap as one: late events are of their own hours, not of all since."""
    merged: list[tuple[datetime, datetime]] = []
    for start, end in sorted(windows):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        elif start < end:
            merged.append((start, end))
    return merged
