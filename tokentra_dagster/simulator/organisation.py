"""What a simulated organisation is made of: projects, people, keys and their series of requests.

A `Stream` is the finest group there is: one endpoint, one model, one key, one user, one tier. Everything that the
providers answer is a sum of streams. `scale` gives every stream that many copies, each with a user and a key of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tokentra_dagster.simulator.aws_streams import aws_dimensions
from tokentra_dagster.simulator.azure_streams import azure_dimensions, azure_pattern
from tokentra_dagster.simulator.google_streams import google_dimensions, google_project

ORIGIN = datetime(2024, 1, 1, tzinfo=UTC)
"""A Monday. Nothing was used before; growth counts from here."""


def hour_of(day: str | None, default: int) -> int:
    """Hours from the origin to 00:00 UTC of `day`."""
    if day is None:
        return default
    return int((datetime.fromisoformat(day).replace(tzinfo=UTC) - ORIGIN).total_seconds()) // 3600


@dataclass(frozen=True, slots=True)
class Stream:
    """One series of requests. `per_hour` is thousandths of a request in an average hour at the origin; `sizes` are
    thousandths of a unit per request; `since` and `until` are hours from the origin."""

    name: str
    provider: str
    endpoint: str
    """OpenAI's usage endpoint; `messages` or `code_execution` at Anthropic."""
    project: str
    dimensions: Mapping[str, Any]
    """Under the provider's own names; what is missing is null."""
    per_hour: int
    sizes: Mapping[str, int]
    rhythm: str
    since: int
    until: int


@dataclass(frozen=True, slots=True)
class Project:
    """An OpenAI project and an Anthropic workspace of the same name. `attributed` ones have an attribution rule."""

    slug: str
    name: str
    team: str
    cost_center: str
    environment: str = "production"
    feature: str | None = None
    people: tuple[str, ...] = ()
    """Who uses a key of their own; without any, a service account does."""
    archived_on: str | None = None
    attributed: bool = True


@dataclass(frozen=True, slots=True)
class Workload:
    """What one project asks of one model, before it is divided among its people. `per_hour` in thousandths."""

    provider: str
    endpoint: str
    project: str
    model: str | None
    per_hour: int
    sizes: Mapping[str, int]
    since: str | None = None
    until: str | None = None
    rhythm: str = "office"
    further: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Person:
    id: str
    """Without the provider's prefix."""
    name: str
    email: str
    is_service_account: bool
    project: str


@dataclass(frozen=True, slots=True)
class Key:
    id: str
    name: str
    project: str
    owner: Person | None


@dataclass(frozen=True, slots=True)
class Organisation:
    name: str
    projects: tuple[Project, ...]
    workloads: tuple[Workload, ...]
    scale: int = 1

    def project_id(self, provider: str, slug: str) -> str:
        prefix = {"openai": "proj", "anthropic": "wrkspc", "aws": "aip"}[provider]
        return f"{prefix}_{self.name}_{slug}"

    def project_pattern(self, provider: str, slug: str) -> str:
        """What an attribution rule matches the project's usage by."""
        if provider == "azure":
            return azure_pattern(slug)
        if provider == "google":
            return google_project(self.name, slug)
        return self.project_id(provider, slug) + ("-*" if provider == "aws" else "")

    @property
    def anthropic_id(self) -> str:
        return f"org_{self.name}"

    @property
    def default_workspace(self) -> str:
        return self.project_id("anthropic", self.projects[-1].slug)

    def people(self, project: Project) -> list[Person]:
        """The project's people, or its service account, once per unit of `scale`."""
        found = []
        for copy in range(self.scale):
            tail = f"-{copy + 1}" if copy else ""
            for first in project.people or (f"{project.slug}-service",):
                slug = f"{first.lower()}{tail}"
                found.append(
                    Person(
                        id=f"{self.name}-{slug}",
                        name=f"{first}{tail}",
                        email=f"{slug}@{self.name}.example",
                        is_service_account=not project.people,
                        project=project.slug,
                    )
                )
        return found

    def everyone(self) -> list[Person]:
        """Each person once, however many projects they work in."""
        return list({person.id: person for project in self.projects for person in self.people(project)}.values())

    def keys(self, provider: str) -> list[Key]:
        return [
            Key(_key_id(provider, project, person), f"{project.slug}-{person.name.lower()}", project.slug, person)
            for project in self.projects
            for person in self.people(project)
        ]

    def streams(self, provider: str) -> list[Stream]:
        return list(_streams(self, provider))

    def launches(self) -> list[tuple[int, str, int]]:
        """(hour, project, per mille): every eighth Monday at 08:00 one project steps up by a quarter and stays there."""
        living = [project.slug for project in self.projects if project.archived_on is None]
        offset = 0 if self.name == "acme" else 28
        return [((14 + offset + 56 * n) * 24 + 8, living[n % len(living)], 1250) for n in range(28)]

    def outages(self, provider: str) -> tuple[int, int, int]:
        """(first hour, every so many hours, for so many hours): almost nothing gets through."""
        return (19 if provider == "openai" else 27) * 24 + 13, 37 * 24, 5


def _key_id(provider: str, project: Project, person: Person) -> str:
    return f"{'key' if provider == 'openai' else 'apikey'}_{person.id}-{project.slug}".replace("-", "_")


def _streams(org: Organisation, provider: str) -> Iterator[Stream]:
    projects = {project.slug: project for project in org.projects}
    for number, workload in enumerate(org.workloads):
        if workload.provider != provider:
            continue
        project = projects[workload.project]
        people = org.people(project)
        share = max(len(project.people), 1)
        for person in people if workload.endpoint not in ("vector_stores", "code_interpreter_sessions") else people[:1]:
            dimensions = dict(workload.further) | {"model": workload.model}
            if provider == "openai":
                dimensions |= _openai_dimensions(org, project, person)
            elif provider == "aws":
                dimensions |= aws_dimensions(
                    org, project, person, str(workload.model), dimensions["region"], dimensions.pop("profiled", False)
                )
            elif provider == "azure":
                dimensions |= azure_dimensions(org, project, str(workload.model), dimensions)
            elif provider == "google":
                dimensions |= google_dimensions(org, project, str(workload.model))
            else:
                dimensions |= _anthropic_dimensions(org, project, person, keyless=dimensions.pop("keyless", False))
            yield Stream(
                name=f"{org.name}/{provider}/{workload.endpoint}/{number}/{person.id}",
                provider=provider,
                endpoint=workload.endpoint,
                project=project.slug,
                dimensions=dimensions,
                per_hour=workload.per_hour // share,
                sizes=workload.sizes,
                rhythm=workload.rhythm,
                since=hour_of(workload.since, 0),
                until=min(hour_of(workload.until, 1 << 40), hour_of(project.archived_on, 1 << 40)),
            )


def _openai_dimensions(org: Organisation, project: Project, person: Person) -> dict[str, Any]:
    return {
        "project_id": org.project_id("openai", project.slug),
        "user_id": f"user-{person.id}",
        "api_key_id": _key_id("openai", project, person),
    }


def _anthropic_dimensions(org: Organisation, project: Project, person: Person, keyless: bool) -> dict[str, Any]:
    """Unbound keys are their own actor; people in the Console have no key; service accounts own theirs."""
    key = None if keyless else _key_id("anthropic", project, person)
    account = f"{'svac' if person.is_service_account else 'user'}_{person.id}".replace("-", "_")
    if person.is_service_account:
        actor: dict[str, Any] = {"type": "service_account_actor", "service_account_id": account}
    elif keyless:
        actor = {"type": "user_actor", "user_id": account, "email_address": person.email, "name": person.name, "deleted": False}
    else:
        actor = {"type": "api_actor", "api_key_id": key}
    workspace = org.project_id("anthropic", project.slug)
    return {
        "organization_id": org.anthropic_id,
        "workspace_id": workspace,
        "legacy_workspace_id": None if workspace == org.default_workspace else workspace,
        "api_key_id": key,
        "account_id": account if keyless else None,
        "service_account_id": account if person.is_service_account else None,
        "actor": actor,
        "actor_type": actor["type"],
        "actor_id": account if not key or person.is_service_account else key,
    }
