"""What the simulated organisations ask of Vertex AI: a Google Cloud project for each of their projects, models, locations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokentra_dagster.simulator.organisation import Organisation, Project

# One kind of failure for each: two of them could both fall on the only request of a minute.
_CHAT = {"input": 1_700_000, "output": 420_000, "client_errors": 50, "latency_ms": 1_700_000, "first_token_ms": 430_000}
_VOICE = _CHAT | {"input_audio": 600_000}
_BULK = {"input": 4_100_000, "output": 700_000, "server_errors": 20, "latency_ms": 5_200_000, "first_token_ms": 900_000}
_EMBED = {"input": 380_000, "client_errors": 10, "latency_ms": 70_000}
_CLAUDE = {
    "uncached": 620_000,
    "cache_read": 2_300_000,
    "cache_5m": 180_000,
    "cache_1h": 24_000,
    "output": 400_000,
    "client_errors": 30,
    "latency_ms": 2_900_000,
    "first_token_ms": 800_000,
}
_GLOBAL: Mapping[str, Any] = {"location": "global", "publisher": "google", "source": "global", "request_type": "shared"}
_REGIONAL: Mapping[str, Any] = {**_GLOBAL, "location": "europe-west4", "source": "regional"}
_BATCH: Mapping[str, Any] = {**_GLOBAL, "source": "batch_global"}
_DEDICATED: Mapping[str, Any] = {**_REGIONAL, "request_type": "dedicated"}
_ANTHROPIC: Mapping[str, Any] = {**_GLOBAL, "publisher": "anthropic"}

# Project, model, requests an hour in thousandths, units, since, until, rhythm, dimensions: a `Workload` after its endpoint.
GOOGLE: Mapping[str, tuple[tuple[Any, ...], ...]] = {
    "acme": (
        ("assistant", "gemini-2.5-flash", 26_000, _CHAT, "2025-06-23", None, "always", _GLOBAL),
        ("calls", "gemini-2.5-flash", 6_000, _VOICE, "2025-09-01", None, "office", _REGIONAL),
        ("studio", "gemini-2.5-pro", 4_000, _CHAT, "2025-06-23", None, "office", _GLOBAL),
        ("insights", "gemini-2.5-flash-lite", 15_000, _BULK, "2025-07-28", None, "night", _BATCH),
        ("search", "gemini-embedding-001", 60_000, _EMBED, "2025-07-14", None, "always", _REGIONAL),
        ("sandbox", "claude-sonnet-4-5", 1_500, _CLAUDE, "2025-10-20", None, "office", _ANTHROPIC),
    ),
    "globex": (
        ("claims", "gemini-2.5-pro", 14_000, _BULK, "2025-06-23", None, "always", _DEDICATED),
        ("claims", "gemini-2.5-flash-lite", 20_000, _BULK, "2025-07-28", None, "night", _BATCH),
        ("underwriting", "gemini-2.5-flash", 7_000, _CHAT, "2025-06-23", None, "office", _GLOBAL),
        ("engineering", "claude-sonnet-4-5", 4_000, _CLAUDE, "2025-10-20", None, "office", _ANTHROPIC),
    ),
}  # fmt: skip


def google_projects(org: Organisation) -> list[str]:
    """The ids of the projects that ask anything, in order: the option `projects` of a connection."""
    return list(dict.fromkeys(google_project(org.name, of[0]) for of in GOOGLE[org.name]))


def google_project(org: str, slug: str) -> str:
    return f"{org}-{slug}"


def google_dimensions(org: Organisation, project: Project, model: str) -> dict[str, Any]:
    """Some series name the model by its whole path, as Google does."""
    spelled = f"publishers/google/models/{model}" if model == "gemini-2.5-pro" else model
    return {"project_id": google_project(org.name, project.slug), "model_user_id": spelled}
