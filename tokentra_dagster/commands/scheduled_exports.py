"""`tokentra exports`: what is exported on a schedule, when and where to, what came of it, and a delivery by hand
(docs/exports-scheduled.md). Imports no Dagster."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from tokentra_dagster.commands.common import echo_json, echo_table, open_database, pairs, parse_moment, settings
from tokentra_dagster.commands.exporting import request_options, request_settings

if TYPE_CHECKING:
    from tokentra_dagster.exports.scheduled.runs import ExportRun
    from tokentra_dagster.exports.scheduled.schedules import ScheduledExport
    from tokentra_dagster.warehouse.directory import Connection

SHOWN_AHEAD = 5


@click.group()
def exports() -> None:
    """Scheduled exports: files that arrive by themselves, whole, once."""


@exports.command()
@click.argument("name")
@click.option("--org", "org_name", required=True)
@click.option("--schedule", required=True, metavar="CRON", help="Cron's five fields, e.g. '0 6 1 * *'; at most once an hour.")
@click.option(
    "--period", required=True, help="last_day, last_week, last_month or last_quarter, counted back from when it is due."
)
@click.option("--time-zone", help="Of schedule and period, e.g. Europe/Berlin. Default: the organisation's.")
@click.option("--deliver", "method", default="download", show_default=True, help="download (a folder), email, s3 or webhook.")
@click.option(
    "--set", "config", multiple=True, metavar="SETTING=VALUE",
    help="A setting of the destination (docs/exports-destinations.md), store.SETTING of its bucket; secrets as env:NAME or file:PATH. "
    "Default folder: exports in TOKENTRA_HOME.",
)  # fmt: skip
@click.option("--wait-until-final", is_flag=True, help="Deliver only when the period is synced, no longer restated, and built.")
@click.option("--catch-up", default="all", show_default=True, help="Of what was missed while nothing ran: all (the newest 100) or latest.")  # fmt: skip
@request_options
def add(
    name: str, org_name: str, schedule: str, period: str, time_zone: str | None, method: str, config: tuple[str, ...],
    wait_until_final: bool, catch_up: str, **chosen: Any,
) -> None:  # fmt: skip
    """Add the export NAME, or change the one of that name; everything is checked now."""
    from tokentra_dagster.exports.destinations.base import Allowances
    from tokentra_dagster.exports.scheduled.changes import add_export

    ours = settings()
    wanted = _nested(pairs(config, "--set"))
    if method == "download" and not wanted:
        wanted = {"folder": str(ours.home / "exports")}
    with open_database().connect() as db:
        export, new = add_export(
            db, org=org_name, name=name, schedule=schedule, relative_period=period, time_zone=time_zone, delivery_method=method,
            delivery_config=wanted, export_config=request_settings(**chosen), wait_until_final=wait_until_final, catch_up=catch_up,
            allowances=Allowances.of(ours),
        )  # fmt: skip
    click.echo(f"{'Added' if new else 'Changed'} {export.label}, {_next(export)}. Try it: tokentra exports run {export.label}")


@exports.command("list")
@click.option("--json", "as_json", is_flag=True)
def list_(as_json: bool) -> None:
    """List them with when each is due next, what was delivered last, and what waits or fails."""
    from rich.markup import escape

    from tokentra_dagster.exports.scheduled.schedules import scheduled_exports

    with open_database().connect() as db:
        found = [(export, _state(db, export)) for export in scheduled_exports(db)]
    if as_json:
        echo_json([_as_json(export) | state for export, state in found])
        return
    if not found:
        click.echo(
            "No export is scheduled. Add one: tokentra exports add NAME --org ORG --schedule '0 6 1 * *' --period last_month"
        )
        return
    echo_table(
        "Scheduled exports",
        [("export", False), ("schedule", False), ("period", False), ("to", False), ("next due (UTC)", False), ("last delivered (UTC)", False),
         ("waiting", True), ("failed", True), ("says", False)],
        ([escape(one.label), f"{one.schedule} {one.zone.key}", one.relative_period, one.delivery_method,
          _moment(next(iter(one.next_due(datetime.now(UTC))), None)) if one.enabled else "paused", _moment(state["last_delivered_at"]),
          str(state["waiting"]), str(state["failed"]), escape(state["error"] or "")] for one, state in found),
    )  # fmt: skip


@exports.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True)
def show(name: str, as_json: bool) -> None:
    """NAME in full, the next due times with their periods, and what is open."""
    from tokentra_dagster.exports.scheduled.runs import read_runs
    from tokentra_dagster.exports.scheduled.schedules import find_export

    with open_database().connect() as db:
        export = find_export(db, name)
        waiting = read_runs(db, "r.export_id = %(id)s AND r.status IN ('waiting', 'failed')", id=export.id)
    ahead = [(moment, export.period(moment)) for moment in export.next_due(datetime.now(UTC), SHOWN_AHEAD)]
    if as_json:
        due = [{"due_at": moment, "period_start": period.start, "period_end": period.end} for moment, period in ahead]
        echo_json(_as_json(export) | {"next_due": due, "open": [_run_json(run) for run in waiting]})
        return
    click.echo(f"{export.label}: {export.relative_period} by {export.schedule!r} in {export.zone.key}" + ("" if export.enabled else ", paused"))  # fmt: skip
    click.echo(f"Export: {_settings_text(export.export_config) or 'the usual (csv by day)'}")
    click.echo(f"To: {export.delivery_method}, {_settings_text(export.delivery_config)}")
    final = "when the period is final" if export.wait_until_final else "at once"
    click.echo(f"Delivered {final}; missed due times: {export.catch_up}")
    for moment, period in ahead:
        click.echo(f"Due {_moment(moment)} UTC of {_moment(period.start)} to {_moment(period.end)} UTC")
    for run in waiting:
        click.echo(f"Open: due {_moment(run.due_at)} UTC, {run.status}, {run.attempts} attempts: {run.error or 'not tried yet'}")


@exports.command()
@click.argument("name")
@click.option("--due", help="Which due time, UTC. Default: the last one.")
@click.option("--fresh", is_flag=True, help="Write a new file, also where the one that was delivered is still there.")
@click.option("--anyway", is_flag=True, help="Do not wait until the period is final.")
@click.option("--json", "as_json", is_flag=True)
def run(name: str, due: str | None, fresh: bool, anyway: bool, as_json: bool) -> None:
    """Deliver NAME now, again where it was delivered: the receiver gets the same message id, and the same file while it is kept."""
    from tokentra_dagster.errors import TokenTraError
    from tokentra_dagster.exports.destinations.base import Allowances
    from tokentra_dagster.exports.scheduled.deliver import deliver_due
    from tokentra_dagster.exports.scheduled.due import last_due
    from tokentra_dagster.exports.scheduled.runs import plan_one
    from tokentra_dagster.exports.scheduled.schedules import find_export

    ours, database, now = settings(), open_database(), datetime.now(UTC)
    with database.connect() as db:
        export = find_export(db, name)
        moment = parse_moment(due, "--due") if due else last_due(export.schedule, export.zone, now)
        run_id = plan_one(db, export, moment, now)
    done = deliver_due(database, run_id, ours.home, Allowances.of(ours), by_hand=True, anyway=anyway, fresh=fresh)
    if as_json:
        echo_json(_run_json(done.run) | {"outcome": done.status, "says": done.says})
    if done.status == "delivered":
        if not as_json and done.run.manifest:
            rows = done.run.manifest["row_count"]
            click.echo(f"Delivered {export.label}, due {_moment(moment)} UTC: {rows:,} rows to {done.run.delivered_to}.")
            if done.run.error:
                click.echo(done.run.error)
            click.echo(f"Message id {run_id}, SHA-256 {done.run.manifest['sha256']}")
        return
    hint = " --anyway delivers it now." if done.status == "waiting" else ""
    raise TokenTraError(f"{export.label}, due {_moment(moment)} UTC, is not delivered: {done.says}{hint}")


@exports.command()
@click.argument("name", required=False)
@click.option("--limit", type=click.IntRange(1, 10000), default=20, show_default=True, help="The newest so many.")
@click.option("--json", "as_json", is_flag=True)
def history(name: str | None, limit: int, as_json: bool) -> None:
    """What became of each due time, the newest first; of one export, of NAME, with every attempt."""
    from rich.markup import escape

    from tokentra_dagster.exports.scheduled.runs import events, read_runs
    from tokentra_dagster.exports.scheduled.schedules import find_export

    with open_database().connect() as db:
        export_id = find_export(db, name).id if name else None
        found = read_runs(
            db, "(%(id)s::uuid IS NULL OR r.export_id = %(id)s)", f"r.due_at DESC, r.id LIMIT {int(limit)}", id=export_id
        )
        told = {one.id: events(db, one.id) for one in found} if name or as_json else {}
    if as_json:
        fields = ("attempt", "event", "happened_at", "started_by", "says")
        echo_json(
            [_run_json(one) | {"events": [{f: getattr(event, f) for f in fields} for event in told[one.id]]} for one in found]
        )
        return
    if not found:
        click.echo("Nothing has come due yet.")
        return
    echo_table(
        "Due times",
        [("export", False), ("due (UTC)", False), ("period from (UTC)", False), ("status", False), ("rows", True), ("attempts", True),
         ("delivered (UTC)", False), ("says", False)],
        ([escape(one.export), _moment(one.due_at), _moment(one.period.start), one.status,
          f"{one.manifest['row_count']:,}" if one.manifest else "", str(one.attempts), _moment(one.delivered_at),
          escape(one.error or one.delivered_to or "")] for one in found),
    )  # fmt: skip
    for one in found:
        for event in told.get(one.id, ()):
            says = f": {event.says}" if event.says else ""
            by = " by hand" if event.started_by == "hand" and event.event == "started" else ""
            click.echo(f"{_moment(one.due_at)}  attempt {event.attempt} {event.event}{by} at {event.happened_at:%Y-%m-%d %H:%M:%S}{says}")  # fmt: skip


@exports.command()
@click.argument("name")
def pause(name: str) -> None:
    """Deliver nothing of NAME until it is resumed. What is due already stays due; what comes due meanwhile does not count."""
    from tokentra_dagster.exports.scheduled.changes import pause as pause_

    with open_database().connect() as db:
        export = pause_(db, name)
    click.echo(f"{export.label} is paused. Again: tokentra exports resume {export.label}")


@exports.command()
@click.argument("name")
def resume(name: str) -> None:
    """Deliver NAME again: what waited or had failed at once, and what comes due from now on."""
    from tokentra_dagster.exports.scheduled.changes import resume as resume_

    with open_database().connect() as db:
        export = resume_(db, name)
    click.echo(f"{export.label} is active, {_next(export)}.")


@exports.command()
@click.argument("name")
def delete(name: str) -> None:
    """Delete NAME and the record of what it delivered; the delivered files stay where they are."""
    from tokentra_dagster.exports.scheduled.changes import delete_export

    with open_database().connect() as db:
        export = delete_export(db, name)
    click.echo(f"{export.label} is deleted.")


def _nested(flat: Mapping[str, str]) -> dict[str, Any]:
    """`store.bucket=x` as the setting `bucket` of `store`."""
    found: dict[str, Any] = {}
    for name, value in flat.items():
        of, dot, inner = name.partition(".")
        if dot:
            found.setdefault(of, {})[inner] = value
        else:
            found[name] = value
    return found


def _state(db: Connection, export: ScheduledExport) -> dict[str, Any]:
    row = db.execute(
        "SELECT count(*) FILTER (WHERE status = 'waiting') AS waiting, count(*) FILTER (WHERE status = 'failed') AS failed, "
        "max(delivered_at) AS last_delivered_at, "
        "(array_agg(error ORDER BY due_at DESC) FILTER (WHERE status IN ('waiting', 'failed') AND error IS NOT NULL))[1] AS error "
        "FROM app.export_runs WHERE export_id = %s",
        [export.id],
    ).fetchone()
    assert row is not None
    return row


def _as_json(export: ScheduledExport) -> dict[str, Any]:
    ahead = export.next_due(datetime.now(UTC)) if export.enabled else []
    return {
        "id": export.id, "organization": export.organization, "name": export.name, "schedule": export.schedule,
        "time_zone": export.zone.key, "relative_period": export.relative_period, "export_config": dict(export.export_config),
        "delivery_method": export.delivery_method, "delivery_config": _settings_text(export.delivery_config),
        "wait_until_final": export.wait_until_final, "catch_up": export.catch_up, "enabled": export.enabled,
        "next_run_at": ahead[0] if ahead else None,
    }  # fmt: skip


def _run_json(run: ExportRun) -> dict[str, Any]:
    manifest = run.manifest or {}
    return {
        "message_id": run.id, "export": run.export, "due_at": run.due_at, "period_start": run.period.start, "period_end": run.period.end,
        "status": run.status, "attempts": run.attempts, "error": run.error, "next_attempt_at": run.next_attempt_at,
        "file_name": manifest.get("file_name"), "row_count": manifest.get("row_count"), "size_bytes": manifest.get("size_bytes"),
        "sha256": manifest.get("sha256"), "written_at": run.written_at, "delivered_at": run.delivered_at, "delivered_to": run.delivered_to,
    }  # fmt: skip


def _settings_text(values: Mapping[str, Any], of: str = "") -> str:
    """On one line. Of an address only scheme and host: its path may be what its receiver takes for a password."""
    shown = []
    for name, value in values.items():
        if isinstance(value, Mapping) and name == "store":
            shown.append(_settings_text(value, f"{name}."))
        elif isinstance(value, str) and value.startswith(("https://", "http://")):
            parts = urlsplit(value)
            shown.append(
                f"{of}{name}={parts.scheme}://{parts.netloc.rpartition('@')[2]}" + ("/..." if parts.path.strip("/") else "")
            )
        else:
            shown.append(f"{of}{name}={value}")
    return ", ".join(shown)


def _next(export: ScheduledExport) -> str:
    ahead = export.next_due(datetime.now(UTC))
    return f"due next {_moment(ahead[0])} UTC" if ahead else "never due again"


def _moment(moment: datetime | None) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}" if moment else ""
