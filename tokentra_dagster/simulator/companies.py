"""The two simulated organisations: their projects, what each asks of which model since when, and whose it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from tokentra_dagster.simulator.azure_streams import AZURE
from tokentra_dagster.simulator.google_streams import GOOGLE
from tokentra_dagster.simulator.organisation import Organisation, Project, Workload

NAMES = ("acme", "globex")
_CHAT = {"text": 900_000, "cached_text": 600_000, "output_text": 350_000}
_SHORT = {"text": 260_000, "cached_text": 40_000, "output_text": 90_000}
_LONG = {"text": 6_400_000, "cached_text": 3_800_000, "output_text": 1_100_000}
_WRITES = _CHAT | {"cache_write_30m": 120_000, "cache_write_12h": 30_000}
_VISION = _CHAT | {"image": 700_000, "cached_image": 90_000}
_VOICE = {"text": 120_000, "audio": 480_000, "output_text": 60_000, "output_audio": 310_000}
_CLAUDE = {
    "uncached": 700_000,
    "cache_read": 2_600_000,
    "cache_5m": 240_000,
    "cache_1h": 35_500,
    "output": 420_000,
    "web_search": 25,
}
_CLAUDE_LONG = {
    "uncached": 90_000_000,
    "cache_read": 160_000_000,
    "cache_5m": 9_000_000,
    "cache_1h": 0,
    "output": 2_400_000,
    "web_search": 0,
}
_CLAUDE_SHORT = {"uncached": 310_000, "cache_read": 0, "cache_5m": 0, "cache_1h": 0, "output": 140_000, "web_search": 0}
_BEDROCK = {
    "uncached": 520_000, "cache_read": 1_900_000, "cache_write": 160_000, "output": 380_000,
    "client_errors": 90, "server_errors": 70, "throttles": 80, "latency_ms": 2_100_000,
}  # fmt: skip
_NOVA = _BEDROCK | {"uncached": 1_300_000, "cache_read": 0, "cache_write": 0, "latency_ms": 900_000}

_STANDARD: Mapping[str, Any] = {"batch": False, "service_tier": "default", "api_source": "unlabeled"}
_AGENTS = {**_STANDARD, "api_source": "agents_api"}
_BATCH: Mapping[str, Any] = {"batch": True, "service_tier": "default", "api_source": "unlabeled"}
_PRIORITY: Mapping[str, Any] = {"batch": False, "service_tier": "priority", "api_source": "unlabeled"}
_MESSAGES: Mapping[str, Any] = {
    "service_tier": "standard", "context_window": "0-200k", "inference_geo": "global", "speed": "standard", "product": "messages_api",
}  # fmt: skip
_MESSAGES_BATCH = {**_MESSAGES, "service_tier": "batch", "product": "message_batches_api"}
_MESSAGES_PRIORITY = {**_MESSAGES, "service_tier": "priority"}
_MESSAGES_LONG = {**_MESSAGES, "context_window": "200k-1M"}
_CONSOLE = {**_MESSAGES, "product": "claude_console", "keyless": True}
_CODE_EXECUTION: Mapping[str, Any] = {"product": None}

# When an organisation moves from one model to the next: (model, since, until).
_LARGE = (
    ("gpt-4o-2024-08-06", None, "2025-05-12"),
    ("gpt-4.1-2025-04-14", "2025-05-12", "2026-01-19"),
    ("gpt-5.2", "2026-01-19", "2026-10-05"),
)
_SMALL = (
    ("gpt-4o-mini-2024-07-18", None, "2025-09-08"),
    ("gpt-5-mini-2025-08-07", "2025-09-08", "2026-09-28"),
    ("gpt-5.4-mini", "2026-09-28", None),
)
_SONNET = (
    ("claude-3-5-sonnet-20241022", None, "2025-06-16"),
    ("claude-sonnet-4-20250514", "2025-06-16", "2025-10-20"),
    ("claude-sonnet-4-5-20250929", "2025-10-20", "2026-06-01"),
    ("claude-sonnet-4-6", "2026-06-01", None),
)
_HAIKU = (("claude-3-5-haiku-20241022", None, "2025-11-03"), ("claude-haiku-4-5-20251001", "2025-11-03", None))
_OPUS = (
    ("claude-opus-4-20250514", "2025-06-02", "2025-09-01"),
    ("claude-opus-4-1-20250805", "2025-09-01", "2026-03-16"),
    ("claude-opus-4-6", "2026-03-16", None),
)
UNKNOWN_MODEL = "orion-preview-1"
"""In no price list."""
GATEWAY_PEOPLE = {
    "acme": (("sandbox", "dev", "Data"), ("studio", "bruno", "Marketing")),
    "globex": (("default", "finn", "Underwriting"),),
}
"""Organisation -> who asks OpenAI through the gateway: project, person, team."""


def _line(
    models: tuple[tuple[str, str | None, str | None], ...], endpoint: str, project: str, per_hour: int, sizes: Mapping[str, int],
    further: Mapping[str, Any], rhythm: str = "office",
) -> tuple[Workload, ...]:  # fmt: skip
    """One workload that moves from model to model."""
    provider = "anthropic" if endpoint == "messages" else "openai"
    return tuple(
        Workload(provider, endpoint, project, m, per_hour, sizes, since, until, rhythm, further) for m, since, until in models
    )


def _acme() -> Organisation:
    projects = (
        Project("assistant", "Support assistant", "Customer Care", "CC-200", feature="chat"),
        Project("search", "Product search", "Platform", "CC-100", feature="search"),
        Project("studio", "Marketing studio", "Marketing", "CC-300", feature="content", people=("Ana", "Bruno", "Chloe")),
        Project("calls", "Call transcripts", "Customer Care", "CC-200", feature="transcription"),
        Project("insights", "Data insights", "Data", "CC-400", "staging", "reports", people=("Dev", "Elif")),
        Project("chatbot", "Retired chatbot", "Customer Care", "CC-200", archived_on="2026-02-02"),
        Project("sandbox", "Sandbox", "", "", "development", people=("Ana", "Dev"), attributed=False),
    )
    o, a = "openai", "anthropic"
    return Organisation(
        "acme",
        projects,
        (
            *_line(_LARGE, "completions", "assistant", 42_000, _VISION, _STANDARD, "always"),
            Workload(o, "completions", "assistant", "gpt-5.6-terra", 42_000, _WRITES, "2026-10-05", None, "always", _STANDARD),
            *_line(_SMALL, "completions", "assistant", 130_000, _SHORT, _PRIORITY, "always"),
            *_line(_LARGE, "completions", "studio", 9_000, _CHAT, _STANDARD),
            Workload(o, "completions", "studio", "gpt-5.4", 9_000, _CHAT, "2026-10-05", None, "office", _STANDARD),
            Workload(o, "completions", "insights", "o3-2025-04-16", 2_400, _LONG, "2025-04-28", None, "office", _STANDARD),
            *_line(_SMALL, "completions", "insights", 30_000, _LONG, _BATCH, "night"),
            Workload(o, "completions", "calls", "gpt-audio", 3_000, _VOICE, "2025-10-06", None, "office", _STANDARD),
            Workload(o, "completions", "chatbot", "gpt-4o-2024-08-06", 6_000, _CHAT, None, None, "always", _STANDARD),
            Workload(o, "completions", "sandbox", UNKNOWN_MODEL, 1_500, _CHAT, None, None, "office", _AGENTS),
            Workload(o, "decisions", "assistant", "gpt-4.1-mini-2025-04-14", 20_000, {"text": 180_000, "output_text": 4_000}, "2026-08-31", None, "always", _STANDARD),
            Workload(o, "embeddings", "search", "text-embedding-3-small", 220_000, {"text": 410_000}, rhythm="always"),
            Workload(o, "embeddings", "insights", "text-embedding-3-large", 14_000, {"text": 1_900_000}, rhythm="night"),
            Workload(o, "moderations", "assistant", "omni-moderation-latest", 90_000, {"text": 150_000}, rhythm="always"),
            Workload(o, "images", "studio", "gpt-image-1", 3_600, {"images": 1_600}, further={"size": "1024x1024", "source": "image.generation"}),
            Workload(o, "images", "studio", "gpt-image-1", 900, {"images": 1_000}, further={"size": "512x512", "source": "image.edit"}),
            Workload(o, "audio_speeches", "studio", "tts-1", 2_400, {"characters": 740_000}),
            Workload(o, "audio_transcriptions", "calls", "whisper-1", 26_000, {"seconds": 212_000}),
            Workload(o, "vector_stores", "assistant", None, 0, {"bytes": 38_000_000}, rhythm="always"),
            Workload(o, "code_interpreter_sessions", "insights", None, 4_000, {}),
            Workload(o, "file_search_calls", "assistant", None, 31_000, {}, rhythm="always", further={"vector_store_id": "vs_acme_handbook"}),
            Workload(o, "web_search_calls", "insights", "gpt-5.2", 5_000, {"calls": 1_400}, further={"context_level": "medium", "api_source": "unlabeled"}),
            *_line(_SONNET, "messages", "assistant", 26_000, _CLAUDE, _MESSAGES, "always"),
            *_line(_HAIKU, "messages", "search", 64_000, _CLAUDE_SHORT, _MESSAGES, "always"),
            *_line(_SONNET[2:], "messages", "insights", 400, _CLAUDE_LONG, _MESSAGES_LONG),
            *_line(_HAIKU, "messages", "insights", 24_000, _CLAUDE_SHORT, _MESSAGES_BATCH, "night"),
            *_line(_OPUS, "messages", "sandbox", 2_600, _CLAUDE, _CONSOLE),
            *_line(_OPUS, "messages", "studio", 5_000, _CLAUDE, {**_MESSAGES, "product": "claude_code"}),
            Workload(a, "code_execution", "insights", None, 3_000, {}, "2025-11-03", None, "office", _CODE_EXECUTION),
            Workload("aws", "bedrock", "assistant", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", 9_000, _BEDROCK, "2025-10-20", None, "always", {"region": "us-east-1", "profiled": True}),
            Workload("aws", "bedrock", "studio", "global.anthropic.claude-haiku-4-5-20251001-v1:0", 6_000, _BEDROCK, "2025-11-03", None, "office", {"region": "us-east-1"}),
            Workload("aws", "bedrock", "insights", "amazon.nova-lite-v1:0", 14_000, _NOVA, "2025-06-02", None, "night", {"region": "eu-central-1"}),
            *(Workload("azure", "models", *of) for of in AZURE["acme"]),
            *_line(_SMALL[1:], "completions", "sandbox", 6_000, _CHAT, _STANDARD),
            *(Workload("google", "vertex", *of) for of in GOOGLE["acme"]),
        ),
    )  # fmt: skip


def _globex() -> Organisation:
    projects = (
        Project("claims", "Claims intake", "Claims", "G-10", feature="intake"),
        Project("underwriting", "Underwriting copilot", "Underwriting", "G-20", feature="copilot", people=("Finn", "Grace")),
        Project("engineering", "Engineering", "Engineering", "G-30", "development", "coding", people=("Hana", "Ivan", "Jo")),
        Project("default", "Default project", "", "", "development", people=("Finn",), attributed=False),
    )
    o, a = "openai", "anthropic"
    return Organisation(
        "globex",
        projects,
        (
            *_line(_SMALL, "completions", "claims", 75_000, _VISION, _STANDARD, "always"),
            *_line(_LARGE, "completions", "underwriting", 12_000, _LONG, _STANDARD),
            Workload(o, "completions", "underwriting", "gpt-5.6-terra", 12_000, _LONG | {"cache_write_30m": 400_000}, "2026-10-05", None, "office", _STANDARD),
            *_line(_SMALL, "completions", "claims", 50_000, _CHAT, _BATCH, "night"),
            Workload(o, "completions", "default", UNKNOWN_MODEL, 800, _SHORT, None, None, "office", _STANDARD),
            Workload(o, "embeddings", "claims", "text-embedding-3-small", 60_000, {"text": 620_000}, rhythm="always"),
            Workload(o, "moderations", "claims", "omni-moderation-latest", 20_000, {"text": 130_000}, rhythm="always"),
            Workload(o, "audio_transcriptions", "claims", "whisper-1", 8_000, {"seconds": 340_000}),
            Workload(o, "vector_stores", "underwriting", None, 0, {"bytes": 96_000_000}, rhythm="always"),
            Workload(o, "file_search_calls", "underwriting", None, 12_000, {}, further={"vector_store_id": "vs_globex_policies"}),
            Workload(o, "web_search_calls", "engineering", "gpt-4.1-2025-04-14", 1_500, {"calls": 1_200}, further={"context_level": "low", "api_source": "unlabeled"}),
            *_line(_SONNET, "messages", "underwriting", 21_000, _CLAUDE, _MESSAGES_PRIORITY),
            *_line(_SONNET, "messages", "engineering", 30_000, _CLAUDE, {**_MESSAGES, "product": "claude_code"}),
            *_line(_HAIKU, "messages", "claims", 52_000, _CLAUDE_SHORT, _MESSAGES_BATCH, "night"),
            *_line(_OPUS, "messages", "default", 1_200, _CLAUDE, _CONSOLE),
            Workload(a, "code_execution", "engineering", None, 1_200, {}, "2025-11-03", None, "office", _CODE_EXECUTION),
            Workload("aws", "bedrock", "claims", "eu.anthropic.claude-haiku-4-5-20251001-v1:0", 11_000, _BEDROCK, "2025-11-03", None, "always", {"region": "eu-central-1", "profiled": True}),
            Workload("aws", "bedrock", "default", "amazon.nova-pro-v1:0", 2_000, _NOVA, "2025-06-02", None, "office", {"region": "us-east-1"}),
            *(Workload("azure", "models", *of) for of in AZURE["globex"]),
            *_line(_SMALL[1:], "completions", "default", 4_000, _CHAT, _STANDARD),
            *(Workload("google", "vertex", *of) for of in GOOGLE["globex"]),
        ),
    )  # fmt: skip


@lru_cache
def organisation(name: str, scale: int = 1) -> Organisation:
    """By name, one of `NAMES`; `KeyError` for any other."""
    return replace({"acme": _acme, "globex": _globex}[name](), scale=scale)


def gateway_user(org: Organisation, person: str) -> str:
    """What the application behind the gateway calls a person; OpenAI does not know it."""
    return f"app-{org.name}-{person}"


def attribution_rules(org: Organisation) -> list[dict[str, Any]]:
    """Keyword arguments of `warehouse.directory.add_rule`: whose each project, workspace and key is.

    The last project has no rule, so that some usage stays unattributed or is named by the gateway only, whose users have teams.
    """
    rules: list[dict[str, Any]] = []
    for project in org.projects:
        if not project.attributed:
            continue
        for provider, match_field in (
            ("openai", "project"),
            ("anthropic", "workspace"),
            ("aws", "project"),
            ("azure", "project"),
            ("google", "project"),
        ):
            rules.append(
                {
                    "match_field": match_field,
                    "match_value": org.project_pattern(provider, project.slug),
                    "provider": provider,
                    "priority": 100,
                    "team": project.team,
                    "project": project.name,
                    "cost_center": project.cost_center,
                    "environment": project.environment,
                }
                | ({"feature": project.feature} if project.feature else {})
            )
    for _, person, team in GATEWAY_PEOPLE[org.name]:
        user = gateway_user(org, person)
        rules.append({"match_field": "user", "match_value": user, "provider": "openai", "priority": 100, "team": team})
    rules.append(
        {
            "match_field": "model",
            "match_value": "omni-moderation-*",
            "provider": "openai",
            "priority": 50,
            "feature": "moderation",
        }
    )
    return rules
