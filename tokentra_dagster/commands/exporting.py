"""`tokentra export`: usage of a period as one file with its manifest (docs/exports.md). Reads only; imports no Dagster."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokentra_dagster.commands.common import echo_json, open_database, parse_moment

if TYPE_CHECKING:
    from tokentra_dagster.exports.manifest import Manifest
    from tokentra_dagster.exports.request import ExportRequest

STANDARD_OUTPUT = "-"
DAYS_NAMED = 5


_REQUEST = [
    click.option("--format", "format_", default="csv", show_default=True, help="csv, json, jsonl, parquet or xlsx."),
    click.option("--granularity", default="day", show_default=True, help="minute, hour, day or month; FOCUS: hour or day."),
    click.option(
        "--dimensions", metavar="A,B", help="What rows are made of; '' for none. Default: provider, model, team, project, ..."
    ),
    click.option("--metrics", metavar="A,B", help="Default: tokens, requests, errors, latency, cost."),
    click.option(
        "--filter",
        "filters",
        multiple=True,
        metavar="DIMENSION=VALUE",
        help="Only this usage; again with the same dimension for one more value. 'team=' is usage without a team.",
    ),
    click.option("--names", help="Column names: friendly or raw. Default: friendly."),
    click.option("--compression", help="none, gzip or zstd, as the format allows. Default: none; zstd inside parquet."),
    click.option("--metadata", is_flag=True, help="Say in the file, or beside it, what it holds."),
    click.option("--users", default="kept", show_default=True, help="User identifiers: kept, left_out or pseudonymised."),
    click.option("--user-key", metavar="REFERENCE", help="Where the key of pseudonyms is: env:NAME or file:PATH."),
    click.option(
        "--profile", default="usage", show_default=True, help="usage, or focus: the FinOps Open Cost and Usage Specification."
    ),
    click.option("--focus-version", help="1.2, 1.3 or 1.4. Default: 1.3."),
]


def request_options(command: Any) -> Any:
    """What an export holds: the same options for one now and for one on a schedule."""
    for decorator in reversed(_REQUEST):
        command = decorator(command)
    return command


@click.command()
@click.option("--org", "org_name", required=True)
@click.option("--from", "start", required=True, help="First moment, UTC, e.g. 2026-06-01 or 2026-06-01T12:00.")
@click.option("--to", "end", required=True, help="The moment after the last one, UTC.")
@request_options
@click.option("--out", metavar="PATH", help="A file or a folder; - is standard output, without a manifest. Default: this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def export(
    org_name: str, start: str, end: str, out: str | None, as_json: bool, **chosen: Any
) -> None:  # fmt: skip
    """Usage of [--from, --to) as a file, and a manifest beside it that proves the file whole."""
    from tokentra_dagster.analytics.periods import Period
    from tokentra_dagster.errors import UsageError
    from tokentra_dagster.exports.request import ExportRequest

    period = Period(parse_moment(start, "--from"), parse_moment(end, "--to"))
    request = ExportRequest(org_name, period, **request_settings(**chosen))
    if out == STANDARD_OUTPUT:
        if as_json:
            raise UsageError("--out is -, so that standard output is the file; leave --json out.")
        _to_standard_output(request)
        return
    path = place_of(out, request)
    manifest = _export(request, path)
    if as_json:
        echo_json(manifest.as_json())
        return
    for sentence in sentences(manifest, request, path):
        click.echo(sentence)


def request_settings(
    format_: str, granularity: str, dimensions: str | None, metrics: str | None, filters: tuple[str, ...], names: str | None,
    compression: str | None, metadata: bool, users: str, user_key: str | None, profile: str, focus_version: str | None,
) -> dict[str, Any]:  # fmt: skip
    """`request_options` as fields of `ExportRequest`; what was not given is not in it."""
    from tokentra_dagster.errors import UsageError

    if profile == "focus" and names is not None:
        raise UsageError("A FOCUS export has the specification's column names; leave --names out.")
    chosen = {
        "format": format_, "granularity": granularity, "dimensions": _listed(dimensions), "metrics": _listed(metrics), "names": names,
        "filters": filters_of(filters) or None, "compression": compression, "include_metadata": metadata or None,
        "users": users if users != "kept" else None, "user_key": user_key, "profile": profile if profile != "usage" else None,
        "focus_version": focus_version,
    }  # fmt: skip
    return {name: value for name, value in chosen.items() if value is not None}


def filters_of(texts: Iterable[str]) -> dict[str, list[str | None]]:
    """`team=Search`, `team=` as what `ExportRequest` takes: values of one dimension add up, an empty one is usage without a value."""
    from tokentra_dagster.errors import UsageError

    found: dict[str, list[str | None]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--filter is {text!r}; write DIMENSION=VALUE, or DIMENSION= for usage without a value.")
        found.setdefault(name, []).append(value or None)
    return found


def place_of(out: str | None, request: ExportRequest) -> Path:
    """The file to write: `out` itself, or the request's own name in the folder that `out` is. Raises `UsageError` for a missing folder."""
    from tokentra_dagster.errors import UsageError

    path = Path(out or ".").expanduser()
    is_folder = path.is_dir() or (out or "").endswith(("/", "\\"))
    path = path / request.file_name if is_folder else path
    if not path.parent.is_dir():
        raise UsageError(f"--out is {out!r}, but there is no folder {path.parent}; make it first.")
    return path


def _listed(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _export(request: ExportRequest, path: Path) -> Manifest:
    from tokentra_dagster.errors import TokenTraError
    from tokentra_dagster.exports.export import export as write

    try:
        return write(open_database(), request, path)
    except OSError as error:
        # Arrow puts the system's words at the end of its own.
        reason = (error.strerror or str(error)).rsplit("] ", 1)[-1]
        raise TokenTraError(f"{path} cannot be written: {reason}; what was there before is unchanged.") from error


def _to_standard_output(request: ExportRequest) -> None:
    """The finished file or nothing of it; what there is to say goes to standard error."""
    with tempfile.TemporaryDirectory(prefix="tokentra-export-") as folder:
        path = Path(folder) / request.file_name
        manifest = _export(request, path)
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    for sentence in sentences(manifest, request, None):
        click.echo(sentence, err=True)


def sentences(manifest: Manifest, request: ExportRequest, path: Path | None) -> list[str]:
    """What was written and what the reader of it has to know. `path` None: it went to standard output."""
    from tokentra_dagster.exports.manifest import manifest_path

    rows = f"{_number(manifest.row_count, 'row')} ({manifest.size_bytes:,} bytes)"
    return [
        f"Wrote {rows} to {path}." if path else f"Wrote {rows}.",
        f"Totals: {_totals(manifest)}.",
        *([f"Manifest: {manifest_path(path)}"] if path else []),
        *_warnings(manifest),
        *_about_focus(request),
    ]


def _totals(manifest: Manifest) -> str:
    totals = manifest.totals
    found = [_number(totals["total_tokens"] or 0, "token")]
    if totals.get("request_count") is not None:
        found.append(_number(totals["request_count"], "request"))
    if "estimated_cost" in totals:
        cost = totals["estimated_cost"]
        found.append("unknown cost" if cost is None else f"{cost:,.2f} {manifest.currency} estimated cost")
    return ", ".join(found)


def _warnings(manifest: Manifest) -> list[str]:
    freshness, left_out = manifest.freshness, manifest.left_out
    found = []
    if days := freshness.provisional_days:
        found.append(f"Provisional: a provider may still change {_days(days)}; export again later.")
    if days := freshness.incomplete_days:
        found.append(f"Incomplete: no sync has seen all of {_days(days)}; run `tokentra sync`.")
    if pending := freshness.pending_syncs:
        found.append(
            f"Pending: {_number(pending, 'sync')} loaded after the last build and not in the file; run `tokentra build`."
        )
    if unpriced := manifest.totals.get("unpriced_tokens"):
        zero = " (0 in the file's costs, marked in x_CostBasis)" if manifest.focus_version else ""
        found.append(f"Unpriced: {_number(unpriced, 'token')} without a known price, so the cost is of the others only{zero}.")
    if left_out.get("record_count"):
        parts = f"{_number(left_out['record_count'], 'record')} with {_number(left_out['total_tokens'], 'token')}"
        found.append(f"Left out: {parts} known only by longer spans than the {manifest.granularity}; --granularity day has all.")
    return found


def _about_focus(request: ExportRequest) -> list[str]:
    if request.focus_version is None:
        return []
    if request.focus_version == "1.4":
        return [
            "FOCUS 1.4: BilledCost and EffectiveCost are 0, because only who invoices may fill them; costs are in ListCost and x_EstimatedCost."
        ]
    return [f"FOCUS {request.focus_version}: all costs are estimates, not what was invoiced (x_CostIsEstimated, x_CostBasis)."]


def _days(days: Sequence[date]) -> str:
    named = ", ".join(day.isoformat() for day in days[:DAYS_NAMED])
    more = len(days) - DAYS_NAMED
    return f"{named} and {_number(more, 'more day')}" if more > 0 else named


def _number(count: Any, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
