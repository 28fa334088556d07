"""`tokentra quota`: limits per period, who they are about, and what happens beyond them."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from tokentra_dagster.commands.common import echo_json, open_database
from tokentra_dagster.commands.quota_look import check, history, list_, show
from tokentra_dagster.commands.quota_options import one_scope, scope_options, term_options

if TYPE_CHECKING:
    from tokentra_dagster.quotas.management import Quota


@click.group()
def quota() -> None:
    """Quotas: limits of tokens and requests per period; what happens beyond them; where they stand."""


for looking in (list_, show, check, history):
    quota.add_command(looking)


@quota.command()
@click.argument("name")
@click.option(
    "--org", "org_name", required=True, help="Organisation that it belongs to; its whole usage, unless a scope is given."
)
@scope_options
@term_options(may_be_none=False)
@click.option("--json", "as_json", is_flag=True)
def add(name: str, org_name: str, team: str | None, project: str | None, user: str | None, api_key: str | None, feature: str | None,
        as_json: bool, **terms: Any) -> None:  # fmt: skip
    """Add the quota NAME. It counts the whole current period, also what was used before it was added."""
    from tokentra_dagster.quotas.management import add_quota

    scope = one_scope({"team": team, "project": project, "user": user, "api_key": api_key, "feature": feature})
    with open_database().connect() as db:
        made = add_quota(
            db, org=org_name, name=name, **scope, **{key: value for key, value in terms.items() if value is not None}
        )
        note = _unknown_scope(db, made)
    if as_json:
        echo_json(made.as_json())
        return
    click.echo(f"Added {made.label}: {made.terms.words}; {made.scope}")
    click.echo(note or f"Where it stands: tokentra quota show {shlex.quote(made.label)}")


@quota.command("set")
@click.argument("name")
@click.option("--name", "new_name", metavar="NEW", help="Another name.")
@scope_options
@click.option("--whole-org", is_flag=True, help="Of the whole organisation from now on.")
@term_options(may_be_none=True)
@click.option("--json", "as_json", is_flag=True)
def set_(name: str, new_name: str | None, team: str | None, project: str | None, user: str | None, api_key: str | None,
         feature: str | None, whole_org: bool, as_json: bool, **terms: Any) -> None:  # fmt: skip
    """Change NAME (or ORG/NAME). Past periods stay judged by the limits of their time; another scope begins to count anew."""
    from tokentra_dagster.quotas.management import change_quota
    from tokentra_dagster.quotas.terms import TERMS, differences

    changes = {key: None if value in ("none", "") else value for key, value in terms.items() if value is not None}
    given = {"team": team, "project": project, "user": user, "api_key": api_key, "feature": feature}
    scope = one_scope(given | {"organization": whole_org or None})
    changes |= scope
    changes |= {"name": new_name} if new_name is not None else {}
    with open_database().connect() as db:
        before, after = change_quota(db, name, changes)
        note = _unknown_scope(db, after) if scope else None
    if as_json:
        echo_json({"before": before.as_json(), "after": after.as_json()})
        return
    changed = [*differences(before, after, ("name", "description", "scope")), *differences(before.terms, after.terms, TERMS)]
    click.echo(f"{after.label}: {', '.join(changed)}" if changed else f"{after.label} is so already; nothing was changed.")
    if note:
        click.echo(note)


@quota.command()
@click.argument("name")
def pause(name: str) -> None:
    """NAME refuses nothing and raises no alert until it is resumed; its usage is still counted."""
    _set_active(name, False)


@quota.command()
@click.argument("name")
def resume(name: str) -> None:
    """NAME holds again; what its period has used meanwhile counts as far as usage knows of it."""
    _set_active(name, True)


@quota.command()
@click.argument("name")
def delete(name: str) -> None:
    """Delete NAME with what is reserved of it; its history and versions stay (`tokentra quota history`)."""
    from tokentra_dagster.quotas.management import delete_quota

    with open_database().connect() as db:
        gone = delete_quota(db, name)
    click.echo(f"{gone.label} is deleted. What it was: tokentra quota history {gone.id}")


def _set_active(name: str, active: bool) -> None:
    from tokentra_dagster.quotas.management import set_active

    with open_database().connect() as db:
        changed, new = set_active(db, name, active)
    state = "active" if active else "paused"
    more = f" Again: tokentra quota resume {shlex.quote(changed.label)}" if new and not active else ""
    click.echo(f"{changed.label} is {state}{'' if new else ' already'}.{more}")


def _unknown_scope(db: Any, quota_: Quota) -> str | None:
    from tokentra_dagster.quotas.standing import knows_scope

    if quota_.scope_value is None or knows_scope(db, quota_.org_id, quota_.scope_type, quota_.scope_value) is not False:
        return None
    return f"No usage of {quota_.scope} is known so far; if that surprises you, look at its spelling."
