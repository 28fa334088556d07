"""What a build leaves alone: views and descriptions that did not change, and the records outside the changed windows."""

from __future__ import annotations

from tests.warehouse_data import DAY, HOUR, connection, load, one, record

MODELS = "+daily_usage_rollup +usage_coverage"


def test_an_incremental_build_reads_records_and_hours_by_key_and_never_a_whole_table(database, build):
    row = connection(database)
    load(
        database, row, [record(DAY + hour * HOUR, user_id=f"u{n}") for hour in range(72) for n in range(20)], DAY, DAY + 72 * HOUR
    )
    build("run")
    with database.connect(autocommit=True) as db:
        db.execute("ANALYZE")
    read_whole = (
        "SELECT sum(seq_tup_read) FROM pg_stat_user_tables "
        "WHERE relname LIKE 'usage\\_records\\_%%' OR relname IN ('hourly_usage_rollup', 'daily_usage_rollup')"
    )
    load(database, row, [record(DAY + 72 * HOUR)], DAY + 72 * HOUR, DAY + 73 * HOUR)
    before = one(database, read_whole)
    build("run")
    assert one(database, read_whole) == before
    assert one(database, "SELECT count(*) FROM marts.hourly_usage_rollup WHERE hour = %s", DAY + 72 * HOUR) == 1


def test_an_unchanged_view_stays_and_with_it_what_people_built_on_it(database, build):
    load(database, connection(database), [record()])
    build("run")
    oid = "SELECT 'marts.usage_coverage'::regclass::oid::bigint"
    first = one(database, oid)
    with database.connect() as db:
        db.execute("CREATE VIEW public.our_report AS SELECT date, is_complete FROM marts.usage_coverage")
    build("run")
    assert one(database, oid) == first
    assert one(database, "SELECT count(*) FROM public.our_report") == 1


def test_a_view_made_from_other_sql_is_made_anew(database, build):
    load(database, connection(database), [record()])
    build("run")
    with database.connect() as db:
        db.execute("DROP VIEW marts.usage_coverage")
        db.execute("CREATE VIEW marts.usage_coverage AS SELECT 1 AS nothing")
    build("run")
    assert one(database, "SELECT count(is_complete) FROM marts.usage_coverage") == 1
