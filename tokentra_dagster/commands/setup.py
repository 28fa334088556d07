"""Setting up: organisations, connections to providers, attribution rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tokentra_dagster.commands.common import echo_json, echo_table, open_database, pairs

if TYPE_CHECKING:
    from tokentra_dagster.providers import Integration

PROVIDERS = click.Choice(["openai", "anthropic", "google", "azure", "aws"])


@click.group()
def org() -> None:
    """Organisations: whose usage it is."""


@org.command("add")
@click.argument("name")
@click.option("--time-zone", default="UTC", show_default=True, help="IANA name; reports show local days, storage stays UTC.")
@click.option("--currency", default="USD", show_default=True)
def org_add(name: str, time_zone: str, currency: str) -> None:
    """Add the organisation NAME; adding it again changes nothing."""
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    from tokentra_dagster.errors import UsageError
    from tokentra_dagster.warehouse.directory import add_organization

    try:
        ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError):
        raise UsageError(f"time zone is {time_zone!r}; use an IANA name such as Europe/Berlin.") from None
    if not name.strip():
        raise UsageError("The organisation needs a name.")
    with open_database().connect() as db:
        identifier, new = add_organization(db, name.strip(), time_zone, currency)
    click.echo(f"{'Added' if new else 'There already:'} {name} ({identifier})")


@org.command("list")
@click.option("--json", "as_json", is_flag=True)
def org_list(as_json: bool) -> None:
    """List organisations."""
    with open_database().connect() as db:
        rows = db.execute("SELECT name, id, time_zone, currency FROM app.organizations ORDER BY name").fetchall()
    if as_json:
        echo_json(rows)
        return
    echo_table(
        "Organisations",
        [("name", False), ("id", False), ("time zone", False), ("currency", False)],
        ([str(v) for v in r.values()] for r in rows),
    )


@org.command("authority")
@click.argument("name")
@click.option("--provider", type=PROVIDERS, required=True)
@click.option("--source", type=click.Choice(["provider_api", "gateway", "events", "file"]), required=True)
def org_authority(name: str, provider: str, source: str) -> None:
    """Say which source counts for NAME's totals of a provider when several saw the same usage."""
    from tokentra_dagster.ingest.authority import set_authority
    from tokentra_dagster.warehouse.directory import organization_id

    with open_database().connect() as db:
        changed = set_authority(db, organization_id(db, name), provider, source)
    click.echo(
        f"{name}: {source} counts for {provider}." + (" Run `tokentra build` to bring the rollups up to it." if changed else "")
    )


@click.group()
def connection() -> None:
    """Connections: one account at one provider."""


@connection.command("add")
@click.option("--org", "org_name", required=True, help="Organisation it belongs to.")
@click.option("--provider", type=PROVIDERS, required=True, help="Whose usage it is.")
@click.option(
    "--integration", help="Who is asked for it: default the provider itself; `tokentra connection integrations` lists all."
)
@click.option("--name", required=True)
@click.option("--secret", help="Where the admin key is: env:NAME or file:PATH. The key itself is never stored.")
@click.option("--base-url", help="Another address for the provider's API, e.g. a proxy or `tokentra simulate`.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="K=V",
    help="granularity=1m|1h|1d, stale_after_hours=N, or an option of the provider.",
)
def connection_add(
    org_name: str, provider: str, integration: str | None, name: str, secret: str | None, base_url: str | None, options: tuple[str, ...]
) -> None:  # fmt: skip
    """Add a connection, or change the one of that name."""
    from tokentra_dagster.errors import UsageError
    from tokentra_dagster.ingest.sync import check_options
    from tokentra_dagster.providers import integration_of
    from tokentra_dagster.warehouse.directory import add_connection

    asked = integration or provider
    entry = integration_of(asked)
    if secret is None and entry.must_have_key:
        raise UsageError(f"--secret is missing: say where {entry.key_needed} is, env:NAME or file:PATH.")
    if secret is not None and entry.key_needed is None:
        raise UsageError(f"{asked} needs no secret; leave --secret out.")
    if secret is not None and (not secret.startswith(("env:", "file:")) or secret in ("env:", "file:")):
        raise UsageError("--secret must be env:NAME or file:PATH; the key itself is never stored.")
    if base_url and not base_url.startswith(("http://", "https://")):
        raise UsageError(f"--base-url is {base_url!r}; it must start with https:// (or http:// for a server of your own).")
    chosen = pairs(options, "--option")
    check_options(asked, provider, base_url, chosen)
    with open_database().connect() as db:
        identifier, new = add_connection(
            db, org=org_name, name=name, provider=provider, source=entry.source_of(chosen), integration=asked,
            secret_ref=secret, base_url=base_url, options=chosen,
        )  # fmt: skip
    click.echo(
        f"{'Added' if new else 'Changed'} {org_name}/{name} ({identifier}). Try it: tokentra connection test {org_name}/{name}"
    )


@connection.command("integrations")
def connection_integrations() -> None:
    """List who can be asked for usage, of which providers, and what secret each needs."""
    from tokentra_dagster.providers import INTEGRATIONS

    echo_table(
        "Integrations", [("integration", False), ("what", False), ("providers", False), ("secret", False), ("options", False)],
        ([name, entry.title, ", ".join(entry.providers), _secret_needed(entry), ", ".join(entry.options)]
         for name, entry in INTEGRATIONS.items()),
    )  # fmt: skip


@connection.command("list")
@click.option("--json", "as_json", is_flag=True)
def connection_list(as_json: bool) -> None:
    """List connections with their last sync."""
    with open_database().connect() as db:
        rows = db.execute(
            """
            SELECT o.name AS organization, c.name, c.provider, c.source, c.integration, c.secret_ref AS secret, c.is_active AS active, s.status AS last_sync,
              s.completed_at AS last_sync_at, s.error
            FROM app.provider_connections AS c
            JOIN app.organizations AS o ON o.id = c.org_id
            LEFT JOIN LATERAL (
              SELECT h.status, h.completed_at, h.error FROM raw.sync_history AS h
              WHERE h.provider_connection_id = c.id ORDER BY h.started_at DESC LIMIT 1
            ) AS s ON true
            ORDER BY 1, 2
            """
        ).fetchall()
    if as_json:
        echo_json(rows)
        return
    columns = [
        ("connection", False),
        ("provider", False),
        ("source", False),
        ("integration", False),
        ("active", False),
        ("last sync", False),
        ("at", False),
        ("error", False),
    ]
    echo_table(
        "Connections", columns,
        ([f"{r['organization']}/{r['name']}", r["provider"], r["source"], r["integration"] or "", "yes" if r["active"] else "no", r["last_sync"] or "never",
          f"{r['last_sync_at']:%Y-%m-%d %H:%M}" if r["last_sync_at"] else "", r["error"] or ""] for r in rows),
    )  # fmt: skip


@connection.command("test")
@click.argument("name")
def connection_test(name: str) -> None:
    """Ask the provider one cheap question with the key of NAME (or ORG/NAME)."""
    from tokentra_dagster.ingest.sync import source_of
    from tokentra_dagster.warehouse.directory import find_connection

    with open_database().connect() as db:
        row = find_connection(db, name)
    click.echo(f"{row.label}: {source_of(row).check()}")


@connection.command("disable")
@click.argument("name")
def connection_disable(name: str) -> None:
    """Stop syncing NAME (or ORG/NAME); what it loaded stays."""
    from tokentra_dagster.warehouse.directory import disable_connection

    with open_database().connect() as db:
        row = disable_connection(db, name)
    click.echo(f"{row.label} is disabled; its usage stays. `tokentra connection add` of the same name enables it again.")


def _secret_needed(entry: Integration) -> str:
    if entry.key_needed is None:
        return "none"
    return f"{entry.key_needed}; without, the machine's own credentials" if entry.key_optional else entry.key_needed


@click.group()
def rule() -> None:
    """Attribution rules: which team, project, cost center, feature and environment usage belongs to."""


@rule.command("add")
@click.option("--org", "org_name", required=True)
@click.option(
    "--match",
    required=True,
    metavar="FIELD=VALUE",
    help="FIELD: project, workspace, api_key, user or model. VALUE: id or name, * allowed.",
)
@click.option("--priority", default=100, show_default=True, help="The lowest number that matches wins.")
@click.option("--provider", type=PROVIDERS)
@click.option("--team")
@click.option("--project")
@click.option("--cost-center")
@click.option("--feature")
@click.option("--environment")
def rule_add(org_name: str, match: str, priority: int, provider: str | None, **fills: str | None) -> None:
    """Add a rule, or change the one with that priority and match. It holds for what is loaded from now on; see `rule apply`."""
    from tokentra_dagster.errors import UsageError
    from tokentra_dagster.warehouse.directory import add_rule

    field, equals, value = match.partition("=")
    allowed = ("project", "workspace", "api_key", "user", "model")
    if not equals or field not in allowed or not value:
        raise UsageError(f"--match is {match!r}; it must be FIELD=VALUE with FIELD one of {', '.join(allowed)}.")
    with open_database().connect() as db:
        add_rule(db, org=org_name, match_field=field, match_value=value, priority=priority, provider=provider, **fills)
    click.echo(f"{field}={value} at priority {priority}. For usage that is loaded already: tokentra rule apply --org {org_name}")


@rule.command("list")
@click.option("--org", "org_name", required=True)
@click.option("--json", "as_json", is_flag=True)
def rule_list(org_name: str, as_json: bool) -> None:
    """List the rules of an organisation in the order in which they are tried."""
    from tokentra_dagster.warehouse.directory import organization_id

    with open_database().connect() as db:
        rows = db.execute(
            """
            SELECT r.priority, r.match_field || '=' || r.match_value AS match, r.provider, t.name AS team, p.name AS project,
              c.name AS cost_center, r.feature, r.environment
            FROM app.attribution_rules AS r
            LEFT JOIN app.teams AS t ON t.id = r.team_id
            LEFT JOIN app.projects AS p ON p.id = r.project_id
            LEFT JOIN app.cost_centers AS c ON c.id = r.cost_center_id
            WHERE r.org_id = %s ORDER BY r.priority, r.created_at, r.id
            """,
            [organization_id(db, org_name)],
        ).fetchall()
    if as_json:
        echo_json(rows)
        return
    names = ["priority", "match", "provider", "team", "project", "cost_center", "feature", "environment"]
    echo_table(
        f"Rules of {org_name}", [(name, name == "priority") for name in names], ([str(r[n] or "") for n in names] for r in rows)
    )


@rule.command("apply")
@click.option("--org", "org_name", required=True)
def rule_apply(org_name: str) -> None:
    """Apply the rules to usage that is loaded already. What a file or gateway itself said is kept."""
    from tokentra_dagster.commands.common import settings
    from tokentra_dagster.runs import must_succeed, run_job
    from tokentra_dagster.runtime import prepare
    from tokentra_dagster.warehouse.directory import organization_id

    database = prepare(settings())
    with database.connect() as db:
        organization_id(db, org_name)
    must_succeed(run_job("apply_rules_job", {"ops": {"apply_rules": {"config": {"org": org_name}}}}), "Applying the rules")
    click.echo("The rules hold for all usage of the organisation now. Run `tokentra build` to bring the rollups up to it.")
