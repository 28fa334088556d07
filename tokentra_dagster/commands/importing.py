"""`tokentra import`: show what a file would load (`--dry-run`, reads only), or load it as a Dagster job."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokentra_dagster.commands.common import echo_json, echo_table, settings
from tokentra_dagster.errors import TokenTraError

if TYPE_CHECKING:
    from tokentra_dagster.ingest.file_import import ImportRequest, Scan
    from tokentra_dagster.ingest.mapping import Plan


def import_file(
    file: Path, *, org: str, provider: str, maps: Sequence[str], name: str, granularity: str | None, bucket_seconds: int | None,
    timezone: str | None, input_convention: str, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Load FILE into the connection `name`, or say what would happen. Raises `TokenTraError` with one clear sentence."""
    from tokentra_dagster.ingest.file_import import ImportRequest

    request = ImportRequest(
        file=file.absolute(), maps=tuple(maps), granularity=granularity, bucket_seconds=bucket_seconds, timezone=timezone,
        input_convention=input_convention,
    )  # fmt: skip
    if dry_run:
        _show(request, as_json)
    else:
        _load(request, org, provider, name, as_json)


def _load(request: ImportRequest, org: str, provider: str, name: str, as_json: bool) -> None:
    from tokentra_dagster.runs import run_job
    from tokentra_dagster.runtime import prepare
    from tokentra_dagster.warehouse.directory import organization_id

    request.open()
    database = prepare(settings())
    with database.connect() as db:
        organization_id(db, org)
    config = {
        "file": str(request.file), "org": org, "provider": provider, "name": name, "maps": list(request.maps),
        "granularity": request.granularity or "", "bucket_seconds": request.bucket_seconds or 0,
        "timezone": request.timezone or "", "input_convention": request.input_convention,
    }  # fmt: skip
    outcome = run_job("import_job", {"ops": {"raw__imported_usage": {"config": config}}})
    if not outcome.success:
        why = re.sub(r"^[\w.]+(?:Error|Failure): ", "", outcome.error or "see the run")
        raise TokenTraError(f"{request.file.name} was not loaded: {why} (Dagster run {outcome.run_id})")
    with database.connect() as db:
        history = db.execute(
            "SELECT window_start, window_end, granularity, records_loaded, records_replaced, records_rejected "
            "FROM raw.sync_history WHERE run_id = %s AND kind = 'import' ORDER BY started_at DESC LIMIT 1",
            [outcome.run_id],
        ).fetchone()
    assert history is not None, "a load that succeeded is in the history"
    if as_json:
        echo_json({"file": str(request.file), "connection": f"{org}/{name}", "run_id": outcome.run_id, **history})
        return
    click.echo(
        f"{org}/{name}: {history['records_loaded']:,} records ({history['records_replaced']:,} replaced, "
        f"{history['records_rejected']:,} rejected) for {history['window_start']:%Y-%m-%d %H:%M} to "
        f"{history['window_end']:%Y-%m-%d %H:%M} UTC. Next: tokentra build"
    )
    if history["records_rejected"]:
        click.echo("The rejected rows are in raw.rejected_records with their line and reason; --dry-run counts them by reason.")


def _show(request: ImportRequest, as_json: bool) -> None:
    from tokentra_dagster.ingest.file_import import scan

    file, plan = request.open()
    found = scan(file, plan)
    if as_json:
        echo_json(_as_json(request.file, plan, found))
        return
    echo_table(
        f"{request.file.name}: {file.format}, {len(file.columns)} columns",
        [("field", False), ("from", False), ("found by", False)],
        [[target, str(expression), plan.found_by[target]] for target, expression in plan.expressions.items()],
    )
    if plan.unused:
        click.echo(f"Not used: {', '.join(plan.unused)}\n")
    unit = "requests, one a row" if plan.granularity is None else f"buckets stored as {plan.granularity}"
    click.echo(f"Would load {found.loadable:,} rows ({unit}); would reject {found.rejected:,}.")
    click.echo(f"Input tokens {found.input_tokens:,}, output tokens {found.output_tokens:,}, requests {found.requests:,}.")
    if found.unknown_tokens:
        click.echo(f"{found.unknown_tokens:,} rows do not say their tokens: stored as 0, marked tokens_unknown, never priced.")
    if found.first is not None:
        window = found.window(plan)
        click.echo(f"Would replace {window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M} UTC in its connection.")
    if found.reasons:
        click.echo()
        echo_table(
            "Rejected",
            [("rows", True), ("reason", False), ("first line", True), ("for example", False)],
            [
                [f"{reason.rows:,}", kind, str(reason.first.line), reason.first.reason if reason.first.reason != kind else ""]
                for kind, reason in sorted(found.reasons.items(), key=lambda item: -item[1].rows)
            ],
        )
    click.echo("Nothing was changed.")


def _as_json(file: Path, plan: Plan, found: Scan) -> dict[str, Any]:
    window = found.window(plan) if found.first is not None else None
    return {
        "file": str(file),
        "map": {target: str(expression) for target, expression in plan.expressions.items()},
        "not_used": list(plan.unused),
        "granularity": plan.stored_granularity,
        "loadable": found.loadable,
        "rejected": found.rejected,
        "input_tokens": found.input_tokens,
        "output_tokens": found.output_tokens,
        "requests": found.requests,
        "rows_with_unknown_tokens": found.unknown_tokens,
        "window_start": window.start.isoformat() if window else None,
        "window_end": window.end.isoformat() if window else None,
        "models": found.models,
        "reasons": {
            kind: {"rows": reason.rows, "first_line": reason.first.line, "example": reason.first.reason}
            for kind, reason in found.reasons.items()
        },
    }
