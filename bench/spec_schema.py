"""The specification's own usage_records (section 2.1), changed only where PostgreSQL refuses it.

The primary key gets the partition column and the index predicate with NOW() becomes a plain index (correction 1); all
its other indexes and foreign keys stand as written.
"""

from __future__ import annotations

SCHEMA = """
CREATE SCHEMA spec;
CREATE TABLE spec.organizations (id UUID PRIMARY KEY);
CREATE TABLE spec.provider_connections (id UUID PRIMARY KEY);
CREATE TABLE spec.teams (id UUID PRIMARY KEY);
CREATE TABLE spec.projects (id UUID PRIMARY KEY);
CREATE TABLE spec.cost_centers (id UUID PRIMARY KEY);
CREATE TABLE spec.sync_history (id UUID PRIMARY KEY);
CREATE TABLE spec.usage_records (
  id UUID DEFAULT gen_random_uuid(),
  org_id UUID NOT NULL REFERENCES spec.organizations(id),
  provider_connection_id UUID NOT NULL REFERENCES spec.provider_connections(id),
  provider TEXT NOT NULL,
  timestamp TIMESTAMPTZ NOT NULL, bucket_start TIMESTAMPTZ NOT NULL, bucket_end TIMESTAMPTZ NOT NULL,
  granularity TEXT NOT NULL DEFAULT '1m',
  model TEXT NOT NULL, model_family TEXT, request_type TEXT, service_tier TEXT,
  input_tokens BIGINT NOT NULL DEFAULT 0, output_tokens BIGINT NOT NULL DEFAULT 0,
  total_tokens BIGINT GENERATED ALWAYS AS (input_tokens + output_tokens) STORED,
  cached_input_tokens BIGINT DEFAULT 0, cache_creation_tokens BIGINT DEFAULT 0,
  request_count INTEGER NOT NULL DEFAULT 0, success_count INTEGER NOT NULL DEFAULT 0, error_count INTEGER NOT NULL DEFAULT 0,
  total_latency_ms BIGINT DEFAULT 0, min_latency_ms INTEGER, max_latency_ms INTEGER,
  p50_latency_ms INTEGER, p95_latency_ms INTEGER, p99_latency_ms INTEGER,
  estimated_cost DECIMAL(12, 6) DEFAULT 0,
  team_id UUID REFERENCES spec.teams(id), project_id UUID REFERENCES spec.projects(id), cost_center_id UUID REFERENCES spec.cost_centers(id),
  feature TEXT, environment TEXT DEFAULT 'production', api_key_id TEXT,
  user_ids TEXT[], unique_user_count INTEGER DEFAULT 0, provider_metadata JSONB DEFAULT '{}',
  sync_id UUID REFERENCES spec.sync_history(id),
  synced_at TIMESTAMPTZ DEFAULT NOW(), created_at TIMESTAMPTZ DEFAULT NOW(), updated_at TIMESTAMPTZ DEFAULT NOW(),
  CONSTRAINT valid_provider CHECK (provider IN ('openai', 'anthropic', 'google', 'azure', 'aws')),
  CONSTRAINT valid_granularity CHECK (granularity IN ('1m', '1h', '1d')),
  CONSTRAINT non_negative_tokens CHECK (input_tokens >= 0 AND output_tokens >= 0),
  CONSTRAINT non_negative_requests CHECK (request_count >= 0),
  PRIMARY KEY (id, timestamp)
) PARTITION BY RANGE (timestamp);
CREATE INDEX idx_usage_org_time ON spec.usage_records (org_id, timestamp DESC);
CREATE INDEX idx_usage_provider ON spec.usage_records (org_id, provider, timestamp DESC);
CREATE INDEX idx_usage_model ON spec.usage_records (org_id, model, timestamp DESC);
CREATE INDEX idx_usage_model_family ON spec.usage_records (org_id, model_family, timestamp DESC);
CREATE INDEX idx_usage_team ON spec.usage_records (team_id, timestamp DESC) WHERE team_id IS NOT NULL;
CREATE INDEX idx_usage_project ON spec.usage_records (project_id, timestamp DESC) WHERE project_id IS NOT NULL;
CREATE INDEX idx_usage_cost_center ON spec.usage_records (cost_center_id, timestamp DESC) WHERE cost_center_id IS NOT NULL;
CREATE INDEX idx_usage_feature ON spec.usage_records (org_id, feature, timestamp DESC) WHERE feature IS NOT NULL;
CREATE INDEX idx_usage_environment ON spec.usage_records (org_id, environment, timestamp DESC);
CREATE INDEX idx_usage_request_type ON spec.usage_records (org_id, request_type, timestamp DESC);
CREATE INDEX idx_usage_recent ON spec.usage_records (org_id, timestamp DESC);
CREATE INDEX idx_usage_dashboard ON spec.usage_records (org_id, timestamp DESC, provider, model)
  INCLUDE (input_tokens, output_tokens, request_count);
"""

COLUMNS = (
    "org_id", "provider_connection_id", "provider", "timestamp", "bucket_start", "bucket_end", "granularity",
    "model", "model_family", "request_type", "service_tier", "input_tokens", "output_tokens", "cached_input_tokens",
    "cache_creation_tokens", "request_count", "success_count", "error_count", "total_latency_ms", "min_latency_ms",
    "max_latency_ms", "p50_latency_ms", "p95_latency_ms", "p99_latency_ms", "estimated_cost", "team_id", "project_id",
    "cost_center_id", "feature", "environment", "api_key_id", "user_ids", "unique_user_count", "provider_metadata", "sync_id",
)  # fmt: skip


def fill_references(db) -> None:  # type: ignore[no-untyped-def]
    """The rows that the foreign keys ask for, copied from our own tables."""
    for table, source in (
        ("organizations", "app.organizations"), ("provider_connections", "app.provider_connections"), ("teams", "app.teams"),
        ("projects", "app.projects"), ("cost_centers", "app.cost_centers"), ("sync_history", "raw.sync_history"),
    ):  # fmt: skip
        db.execute(f"INSERT INTO spec.{table} SELECT id FROM {source}")
