"""What a stream of Bedrock requests is made of: account, region, model, application profile and who calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokentra_dagster.simulator.organisation import Organisation, Person, Project

ACCOUNTS = {"acme": "111122223333", "globex": "444455556666"}


def aws_dimensions(
    org: Organisation, project: Project, person: Person, model: str, region: str, profiled: bool
) -> dict[str, Any]:
    """A role for each project, whose sessions are its people; some projects call through an application profile of their own."""
    account = ACCOUNTS[org.name]
    profile = f"{org.project_id('aws', project.slug)}-{model.split('.')[-1].split('-')[1]}".lower() if profiled else None
    arn = f"arn:aws:bedrock:{region}:{account}"
    return {
        "account_id": account,
        "region": region,
        "profile_id": profile,
        "metric_id": profile or model,
        "log_id": f"{arn}:application-inference-profile/{profile}" if profile else model,
        "identity": f"arn:aws:sts::{account}:assumed-role/{org.name}-{project.slug}/{person.email}",
        "request_metadata": {"feature": project.feature, "environment": project.environment} if project.feature else {},
    }
