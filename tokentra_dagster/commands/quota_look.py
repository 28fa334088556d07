"""`tokentra quota list|show|check|history`: where quotas stand, whether a request may go ahead, and what was."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from tokentra_dagster.commands.common import echo_json, echo_table, open_database
from tokentra_dagster.commands.quota_options import Amount, scope_options

if TYPE_CHECKING:
    from datetime import datetime

    from tokentra_dagster.quotas import Decision
    from tokentra_dagster.quotas.management import Quota
    from tokentra_dagster.quotas.standing import Measure, Standing, Version

EXIT_STATUS = {"allowed": 0, "throttled": 3, "blocked": 4}
_MEASURE_COLUMNS = [
    ("of the current period", False), ("limit", True), ("in usage", True), ("used", True), ("reserved", True), ("% of limit", True),
    ("projected", True),
]  # fmt: skip


@click.command("list")
@click.option("--org", "org_name", help="Only of this organisation.")
@click.option("--json", "as_json", is_flag=True)
def list_(org_name: str | None, as_json: bool) -> None:
    """List quotas, a row per limit, with what their current period has used and reserved so far."""
    from rich.markup import escape

    from tokentra_dagster.quotas.management import quotas
    from tokentra_dagster.quotas.standing import standings

    with open_database().connect() as db:
        found = quotas(db, org_name)
        stand = standings(db, [one.id for one in found])
        found = [one for one in found if one.id in stand]  # the others were deleted meanwhile
    if as_json:
        echo_json([one.as_json() | {"standing": _standing_json(stand[one.id])} for one in found])
        return
    if not found:
        click.echo("There is no quota: run `tokentra quota add`.")
        return
    rows = []
    for one in found:
        about = [escape(one.label), escape(one.scope), one.terms.enforcement_mode, _state(one, stand[one.id])]
        for measure in (each for each in stand[one.id].measures if each.limit is not None):
            rows.append(
                [*about[:2], f"{measure.limit:,} {_words(measure)} {one.terms.period_type}", f"{measure.counted:,}", _pct(measure.utilization_pct),
                 _moment(stand[one.id].period_end), *about[2:]]
            )  # fmt: skip
            about = [""] * 4
    columns = [("quota", False), ("scope", False), ("limit", False), ("used and reserved", True), ("%", True), ("until (UTC)", False),
               ("mode", False), ("by usage", False)]  # fmt: skip
    echo_table("Quotas", columns, rows)


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True)
def show(name: str, as_json: bool) -> None:
    """One quota in full: what it says, where it stands, and what usage corrected of its counters."""
    from tokentra_dagster.quotas.counters import corrections
    from tokentra_dagster.quotas.management import find_quota
    from tokentra_dagster.quotas.standing import standings

    with open_database().connect() as db:
        one = find_quota(db, name)
        standing = standings(db, [one.id])[one.id]
        corrected = corrections(db, quota_id=one.id, limit=12)
    if as_json:
        echo_json(one.as_json() | {"standing": _standing_json(standing), "corrections": corrected})
        return
    click.echo(f"{one.label}: {one.terms.period}, {one.scope}, {one.terms.enforcement_mode}; {_state(one, standing)}")
    if one.description:
        click.echo(one.description)
    click.echo(
        f"Warning from {one.terms.warning_threshold_pct} %, critical from {one.terms.critical_threshold_pct} % of any limit. Id {one.id}"
    )
    click.echo(f"Current period: {_moment(standing.period_start)} to {_moment(standing.period_end)} UTC")
    echo_table(
        "Counted", _MEASURE_COLUMNS,
        ([_words(each), _count(each.limit), _count(each.in_usage), _count(each.used), _count(each.reserved), _pct(each.utilization_pct, " %"),
          _count(each.projected)] for each in standing.measures),
    )  # fmt: skip
    if standing.data_until is None:
        click.echo("No usage has been loaded and built yet: used is what was settled.")
    else:
        click.echo(
            f"Usage is known up to {_moment(standing.data_until)} UTC; used holds what was settled beside it (docs/quotas.md)."
        )
    if corrected:
        echo_table(
            "Corrected by usage",
            [("when (UTC)", False), ("measure", False), ("was counted", True), ("is", True), ("difference", True), ("in usage", True)],
            ([_second(row["corrected_at"]), row["measure"].replace("_", " "), _count(row["counted_before"]), _count(row["counted"]),
              f"{row['difference']:+,}", _count(row["in_usage"])] for row in corrected),
        )  # fmt: skip


@click.command()
@click.option("--org", "org_name", required=True, help="Whose request it is.")
@scope_options
@click.option("--tokens", type=Amount(), help="Tokens that it is expected to need; or input and output tokens.")
@click.option("--input-tokens", type=Amount())
@click.option("--output-tokens", type=Amount())
@click.option("--requests", type=Amount(), default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def check(org_name: str, team: str | None, project: str | None, user: str | None, api_key: str | None, feature: str | None,
          tokens: int | None, input_tokens: int | None, output_tokens: int | None, requests: int, as_json: bool) -> None:  # fmt: skip
    """Say whether a request would be let pass now; nothing is reserved. Exit status 0: yes, 3: throttled, 4: blocked."""
    from tokentra_dagster.quotas import Request
    from tokentra_dagster.quotas import check as check_
    from tokentra_dagster.quotas.management import entity_id, quotas
    from tokentra_dagster.warehouse.directory import organization_id

    with open_database().connect(autocommit=True) as db:
        org_id = organization_id(db, org_name)
        decision = check_(
            db,
            Request(
                org_id, tokens, input_tokens, output_tokens, requests, user_identifier=user, api_key_id=api_key, feature=feature,
                team_id=entity_id(db, org_id, org_name, "team", team) if team else None,
                project_id=entity_id(db, org_id, org_name, "project", project) if project else None,
            ),
        )  # fmt: skip
        names = {one.id: one.name for one in quotas(db, str(org_id))}
    if as_json:
        echo_json(asdict(decision))
    else:
        _say(decision, [names.get(one, str(one)) for one in decision.applicable_quotas])
    raise SystemExit(EXIT_STATUS[decision.decision])


@click.command()
@click.argument("name")
@click.option("--limit", type=click.IntRange(1, 10000), default=12, show_default=True, help="The newest so many periods.")
@click.option("--json", "as_json", is_flag=True)
def history(name: str, limit: int, as_json: bool) -> None:
    """Periods of a quota, the newest first, with peaks and what was refused; then the versions that it had. Also of a deleted one."""
    from rich.markup import escape

    from tokentra_dagster.quotas import standing
    from tokentra_dagster.quotas.management import find_quota

    with open_database().connect() as db:
        one = find_quota(db, name, with_deleted=True)
        built = standing.is_built(db)
        periods = standing.history(db, one.id, limit) if built else []
        versions = standing.versions(db, one.id)
    if as_json:
        echo_json({"quota": one.as_json(), "periods": periods, "versions": [_version_json(version) for version in versions]})
        return
    click.echo(f"{one.label}, {one.scope}" + (f", deleted {_moment(one.deleted_at)} UTC" if one.deleted_at else ""))
    if built:
        _periods(periods)
    else:
        click.echo("Usage of quotas has not been built yet: run `tokentra build`.")
    echo_table(
        "Versions", [("version", True), ("from (UTC)", False), ("to (UTC)", False), ("changed", False)],
        ([str(version.version), _second(version.valid_from), _second(version.valid_to) if version.valid_to else "",
          escape(", ".join(version.changes) or f"{version.terms.words}; {version.scope}")] for version in versions),
    )  # fmt: skip


def _periods(periods: list[dict[str, Any]]) -> None:
    from tokentra_dagster.quotas.standing import COLUMNS
    from tokentra_dagster.quotas.terms import LIMITS

    limited = [(words, COLUMNS[measure], limit) for (limit, words), measure in zip(LIMITS.items(), COLUMNS, strict=True)
               if any(row[limit] is not None for row in periods)]  # fmt: skip
    columns = [("period (UTC)", False), *((f"{words} of limit", True) for words, _, _ in limited), ("peak %", True), ("exceeded", False),
               ("throttled", True), ("blocked", True), ("alerts", True), ("", False)]  # fmt: skip
    echo_table(
        "Periods", columns,
        ([f"{_moment(row['period_start'])} to {_moment(row['period_end'])}",
          *(f"{_count(row[used])} of {_count(row[limit])}" for _, used, limit in limited),
          _pct(row["max_utilization_pct"]), {True: "yes", False: "no", None: "unknown"}[row["exceeded_limit"]],
          f"{row['throttle_events']:,}", f"{row['block_events']:,}", f"{row['alerts_sent']:,}", ", ".join(_remarks(row))] for row in periods),
    )  # fmt: skip
    peaks = [row for row in periods if row["max_utilization_pct"] is not None]
    if peaks:
        peak = max(peaks, key=lambda row: row["max_utilization_pct"])
        click.echo(
            f"The highest: {_pct(peak['max_utilization_pct'], ' %')} in the period from {_moment(peak['period_start'])} UTC"
        )


def _remarks(row: dict[str, Any]) -> Iterable[str]:
    if row["is_current"]:
        yield "current"
    elif row["is_provisional"]:
        yield "provisional"
    if not row["is_active"]:
        yield "not in force"
    if row["requests_are_partial"]:
        yield "requests partly unknown"
    if row["is_approximate"]:
        yield "days cut by the period"


def _say(decision: Decision, names: list[str]) -> None:
    if not names:
        click.echo("Allowed: no quota applies to it.")
        return
    click.echo(f"{decision.decision.capitalize()}{': ' + decision.reason if decision.reason else ''}.")
    if decision.decision == "throttled":
        click.echo(
            "It never fits." if decision.retry_after is None or decision.retry_at is None
            else f"Again in {decision.retry_after:,} s, at {decision.retry_at:%Y-%m-%d %H:%M:%S} UTC."
        )  # fmt: skip
    for violation in decision.violations:
        if violation.enforcement_mode == "alert":
            click.echo(
                f"Quota {violation.quota_name} is passed and lets pass: {violation.projected_usage:,} of {violation.limit:,} "
                f"{violation.limit_type.replace('_', ' ')}."
            )
    for warning in decision.warnings:
        click.echo(
            f"{warning.level.capitalize()}: quota {warning.quota_name} would be at {warning.utilization_pct:.1f} % of its "
            f"{warning.limit_type.replace('_', ' ')}."
        )
    click.echo(f"Quotas that apply: {', '.join(names)}")


def _state(one: Quota, standing: Standing) -> str:
    return (standing.status or "no usage known") if one.is_active else "paused"


def _standing_json(standing: Standing) -> dict[str, Any]:
    measures = {
        each.measure: {**asdict(each), "counted": each.counted, "utilization_pct": each.utilization_pct} for each in standing.measures
    }  # fmt: skip
    return {**asdict(standing), "measures": measures}


def _version_json(version: Version) -> dict[str, Any]:
    shown = asdict(version)
    return {**{name: value for name, value in shown.items() if name != "terms"}, **shown["terms"]}


def _words(measure: Measure) -> str:
    return measure.measure.replace("_", " ")


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _pct(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:,.1f}{unit}"


def _moment(moment: datetime) -> str:
    from datetime import UTC

    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def _second(moment: datetime) -> str:
    from datetime import UTC

    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
