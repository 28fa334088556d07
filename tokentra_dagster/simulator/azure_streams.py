"""What the simulated organisations ask of Azure: accounts, deployments, and their workloads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokentra_dagster.simulator.organisation import Organisation, Project

SUBSCRIPTIONS = {"acme": "00000000-0000-4000-8000-00000000ac3e", "globex": "00000000-0000-4000-8000-0000000610be"}
# One kind of failure for each: two of them could both fall on the only request of a minute.
_CHAT = {"input": 1_400_000, "output": 380_000, "client_errors": 60, "latency_ms": 1_900_000}
_BULK = {"input": 5_200_000, "output": 900_000, "server_errors": 30, "latency_ms": 4_200_000}
_EMBED = {"input": 430_000, "client_errors": 20, "latency_ms": 90_000}
_CLAUDE = {
    "uncached": 700_000,
    "cache_read": 2_100_000,
    "cache_5m": 190_000,
    "cache_1h": 22_000,
    "output": 410_000,
    "client_errors": 20,
    "latency_ms": 2_600_000,
}
_EAST: Mapping[str, Any] = {"region": "eastus2", "type": "GlobalStandard"}
_SWEDEN: Mapping[str, Any] = {"region": "swedencentral", "type": "GlobalStandard"}

# Project, model, requests an hour in thousandths, units, since, until, rhythm, dimensions: a `Workload` after its endpoint.
AZURE: Mapping[str, tuple[tuple[Any, ...], ...]] = {
    "acme": (
        ("assistant", "gpt-4.1", 18_000, _CHAT, "2025-05-12", None, "always", {**_EAST, "version": "2025-04-14"}),
        ("assistant", "gpt-5-mini", 30_000, _CHAT, "2025-09-08", None, "always", {**_SWEDEN, "version": "2025-08-07"}),
        ("insights", "gpt-4o-mini", 9_000, _BULK, "2024-10-07", None, "night", {**_SWEDEN, "version": "2024-07-18", "type": "GlobalBatch"}),
        ("search", "text-embedding-3-small", 70_000, _EMBED, "2024-06-03", None, "always", {**_EAST, "version": "1"}),
        ("studio", "claude-sonnet-4-5", 3_000, _CLAUDE, "2026-02-02", None, "office", {**_SWEDEN, "version": "1"}),
        ("sandbox", "gpt-4o", 1_200, _CHAT, "2025-01-06", None, "office", {**_EAST, "version": "2024-08-06"}),
    ),
    "globex": (
        ("claims", "gpt-4.1", 22_000, _BULK, "2025-06-02", None, "always", {**_SWEDEN, "version": "2025-04-14", "type": "ProvisionedManaged"}),
        ("underwriting", "gpt-5-mini", 6_000, _CHAT, "2025-10-06", None, "office", {**_SWEDEN, "version": "2025-08-07"}),
        ("engineering", "claude-sonnet-4-5", 5_000, _CLAUDE, "2026-02-02", None, "office", {**_EAST, "version": "1"}),
    ),
}  # fmt: skip


def azure_dimensions(org: Organisation, project: Project, model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """An account for each region, and in it a deployment for each project and model."""
    return {
        "subscription": SUBSCRIPTIONS[org.name],
        "account": f"{org.name}-{given['region']}",
        "deployment": f"{project.slug}-{model}",
    }


def azure_pattern(slug: str) -> str:
    """Every deployment of a project, whatever account it is in."""
    return f"*/{slug}-*"
