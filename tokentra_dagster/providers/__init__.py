"""The integrations that a connection can name. Listing them imports no vendor's SDK; opening one does."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import cast

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers.base import ConnectionConfig, Source


@dataclass(frozen=True, slots=True)
class Integration:
    """Where a source's class lives (`module:Class`, made from one `ConnectionConfig`), and what its user needs."""

    target: str
    title: str
    providers: tuple[str, ...]
    """Whose usage it can tell; a connection is about one of them."""
    options: tuple[str, ...]
    settles_after: timedelta
    """Usage is restated for this long: what is younger is provisional, and every scheduled sync reads it again."""
    costs_settle_after: timedelta | None = None
    """The same for what was billed; one scheduled sync a day reaches back as far. None: it tells no costs."""
    key_needed: str | None = None
    """What the secret of a connection has to be; None: there is none."""
    key_optional: bool = False
    """Without a secret the machine's own credentials are used."""
    source: str = "provider_api"
    """One of `records.SOURCES`: how authoritative it is."""
    source_by_billing: Mapping[str, str] = field(default_factory=dict)
    """The same where it depends on the connection's option `billing`."""

    @property
    def must_have_key(self) -> bool:
        return self.key_needed is not None and not self.key_optional

    def source_of(self, options: Mapping[str, str]) -> str:
        """The kind of source that a connection with these options is."""
        return self.source_by_billing.get(options.get("billing", ""), self.source)

    def open(self, config: ConnectionConfig) -> Source:
        module, _, name = self.target.partition(":")
        return cast(Source, getattr(importlib.import_module(module), name)(config))


EXPORT_KEY = "an access key as ACCESS_KEY_ID:SECRET_ACCESS_KEY, where the location is in S3"
EXPORT_OPTIONS = ("location", "bucket_region", "role_arn", "external_id")
"""Where exported files lie."""

INTEGRATIONS: dict[str, Integration] = {
    "openai": Integration(
        # How long a provider restates is documented nowhere: cautious guesses (providers.md 1.4, quirk 10).
        target="tokentra_dagster.providers.openai:OpenAISource",
        title="OpenAI organisation usage and costs",
        providers=("openai",),
        key_needed="an Admin API key (sk-admin-...)",
        options=("endpoints", "costs", "costs_group_by", "timeout_seconds", "max_retries"),
        settles_after=timedelta(days=3),
        costs_settle_after=timedelta(days=7),
    ),
    "anthropic": Integration(
        target="tokentra_dagster.providers.anthropic:AnthropicSource",
        title="Anthropic organisation usage and costs",
        providers=("anthropic",),
        key_needed="an Admin API key (sk-ant-admin01-...) or a key with read:analytics",
        options=("api", "group_by", "timeout_seconds", "max_retries"),
        settles_after=timedelta(days=3),
        costs_settle_after=timedelta(days=7),
    ),
    "aws": Integration(
        # CloudWatch takes late points for two weeks but rarely gets them; AWS says nothing for Bedrock.
        target="tokentra_dagster.providers.aws:AwsSource",
        title="Amazon Bedrock by CloudWatch metrics, and its bill",
        providers=("aws",),
        key_needed="an access key as ACCESS_KEY_ID:SECRET_ACCESS_KEY",
        key_optional=True,
        options=(
            "regions",
            "models",
            "mantle",
            "invocations",
            "latency_percentiles",
            "cost_export",
            "cost_column",
            "cost_products",
            "bucket_region",
            "role_arn",
            "external_id",
            "timeout_seconds",
            "max_retries",
        ),
        settles_after=timedelta(days=3),
        # As far as CloudWatch lists every metric and keeps minutes, because a sync reads usage and costs of the same days.
        costs_settle_after=timedelta(days=12),
    ),
    "aws_invocation_logs": Integration(
        target="tokentra_dagster.providers.aws_invocation_logs:AwsInvocationLogSource",
        title="Amazon Bedrock's model invocation log in S3",
        providers=("aws",),
        key_needed="an access key as ACCESS_KEY_ID:SECRET_ACCESS_KEY",
        key_optional=True,
        options=(
            "location",
            "bucket_region",
            "accounts",
            "regions",
            "models",
            "delivery_lag_hours",
            "attribution",
            "keep_metadata",
            "role_arn",
            "external_id",
            "timeout_seconds",
            "max_retries",
        ),
        settles_after=timedelta(days=1),
        # It sees requests where they pass and not the account's totals: beside `aws` it explains and is not added.
        source="gateway",
    ),
    "azure": Integration(
        # Nobody says for how long Azure still takes late points: a cautious guess.
        target="tokentra_dagster.providers.azure:AzureSource",
        title="Azure OpenAI and Foundry models by Azure Monitor, and their bill",
        providers=("azure",),
        key_needed="TENANT:CLIENT:SECRET of an app registration",
        key_optional=True,
        options=(
            "subscriptions",
            "accounts",
            "metrics",
            "details",
            "deployments",
            "anthropic_input",
            "cost_export",
            "cost_words",
            "timeout_seconds",
            "max_retries",
        ),
        settles_after=timedelta(days=3),
        # Until 72 hours after the month's end the bill still takes charges.
        costs_settle_after=timedelta(days=7),
    ),
    "google": Integration(
        # Points are visible after minutes; nobody says for how long Google still takes late ones: a cautious guess.
        target="tokentra_dagster.providers.google:GoogleSource",
        title="Vertex AI by Cloud Monitoring, and its bill",
        providers=("google",),
        key_needed="the JSON key of a service account",
        key_optional=True,
        options=(
            "projects",
            "details",
            "latency_type",
            "anthropic_input",
            "retention_days",
            "endpoint",
            "bigquery_endpoint",
            "billing_table",
            "billing_files",
            "billing_words",
            "billing_currency",
            "timeout_seconds",
            "max_retries",
        ),
        settles_after=timedelta(days=3),
        # Rows of the billing export arrive for days after the usage.
        costs_settle_after=timedelta(days=7),
    ),
    "claude_code": Integration(
        target="tokentra_dagster.providers.claude_code:ClaudeCodeSource",
        title="Claude Code session logs",
        providers=("anthropic",),
        options=("folder", "layout", "user", "billing"),
        # Logs come from people's machines, when those are on.
        settles_after=timedelta(days=5),
        # A subscription is an account that no report of the provider knows; with an API key the report counts and the log explains it.
        source_by_billing={"api": "file"},
    ),
    "codex": Integration(
        target="tokentra_dagster.providers.codex:CodexSource",
        title="Codex session logs",
        providers=("openai",),
        options=("folder", "layout", "user", "billing"),
        settles_after=timedelta(days=5),
        source_by_billing={"api": "file"},
    ),
    "litellm": Integration(
        target="tokentra_dagster.providers.litellm:LiteLLMSource",
        title="LiteLLM's spend log, from its PostgreSQL",
        providers=("openai", "anthropic", "google", "azure", "aws"),
        key_needed="the password of a database role that may read LiteLLM_SpendLogs",
        options=("database", "llm_providers", "timeout_seconds", "max_retries"),
        # Proxies write their log in batches, some minutes late.
        settles_after=timedelta(days=1),
        source="gateway",
    ),
    "langfuse": Integration(
        target="tokentra_dagster.providers.langfuse:LangfuseSource",
        title="Langfuse's generations, by its Observations API",
        providers=("openai", "anthropic", "google", "azure", "aws"),
        key_needed="the project's keys as PUBLIC_KEY:SECRET_KEY (pk-lf-...:sk-lf-...)",
        options=("models", "input_includes_cache", "timeout_seconds", "max_retries"),
        # Some writers' observations come a quarter of an hour late, and generations may be changed after they ended.
        settles_after=timedelta(days=1),
        source="gateway",
    ),
    "langfuse_export": Integration(
        target="tokentra_dagster.providers.langfuse_export:LangfuseExportSource",
        title="Langfuse's scheduled exports to blob storage, from a folder or S3",
        providers=("openai", "anthropic", "google", "azure", "aws"),
        key_needed=EXPORT_KEY,
        key_optional=True,
        options=(*EXPORT_OPTIONS, "models", "input_includes_cache", "timeout_seconds", "max_retries"),
        # A daily run brings a day that ended some minutes before it.
        settles_after=timedelta(days=2),
        source="gateway",
    ),
    "helicone": Integration(
        target="tokentra_dagster.providers.helicone:HeliconeSource",
        title="Helicone's exported requests, from a folder or S3",
        providers=("openai", "anthropic", "google", "azure", "aws"),
        key_needed=EXPORT_KEY,
        key_optional=True,
        options=(
            *EXPORT_OPTIONS,
            "helicone_providers",
            "models",
            "input_includes_cache",
            "cost",
            "attribution",
            "timeout_seconds",
            "max_retries",
        ),
        # Somebody runs the export, at best every day.
        settles_after=timedelta(days=2),
        source="gateway",
    ),
}


def integration_of(name: str) -> Integration:
    """By name. Raises `PermanentError` that lists the ones there are."""
    entry = INTEGRATIONS.get(name)
    if entry is None:
        raise PermanentError(f"unknown integration {name!r}; there are {', '.join(sorted(INTEGRATIONS))}")
    return entry


def open_source(config: ConnectionConfig) -> Source:
    """The source that this connection describes. Asks nobody anything yet."""
    entry = integration_of(config.asked)
    if config.provider not in entry.providers:
        raise PermanentError(f"{config.asked} tells nothing of {config.provider!r}; it knows {', '.join(entry.providers)}")
    if entry.must_have_key and not config.api_key.strip():
        raise PermanentError(f"{config.asked}: the connection has no key; give it {entry.key_needed}")
    return entry.open(config)
