-- Usage events: one request each, as applications send them (specification section 10, correction 34, docs/decisions/0012).

-- Append-only. What a client sends twice is here once: `event_id` is the client's own, unique in its organisation.
-- No foreign keys, as on usage_records (docs/decisions/0003). `event_number` is no order of commits: a smaller number may become
-- visible after a larger one, so nobody may remember "everything up to n"; what is not yet a record is in pending_usage_events.
CREATE TABLE raw.usage_events (
  event_number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  org_id UUID NOT NULL,
  event_id TEXT NOT NULL CHECK (event_id <> ''),
  occurred_at TIMESTAMPTZ NOT NULL,
  received_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  provider TEXT NOT NULL CHECK (provider IN ('openai', 'anthropic', 'google', 'azure', 'aws')),
  model TEXT NOT NULL CHECK (model <> ''),
  request_type TEXT,
  service_type TEXT,
  service_tier TEXT,
  input_tokens BIGINT NOT NULL CHECK (input_tokens >= 0),
  output_tokens BIGINT NOT NULL CHECK (output_tokens >= 0),
  cached_input_tokens BIGINT CHECK (cached_input_tokens >= 0),
  cache_creation_tokens BIGINT CHECK (cache_creation_tokens >= 0),
  token_details JSONB NOT NULL DEFAULT '{}',
  quantity NUMERIC,
  quantity_unit TEXT,
  is_error BOOLEAN,
  error_message TEXT,
  latency_ms BIGINT CHECK (latency_ms >= 0),
  reported_cost NUMERIC(24, 12),
  currency TEXT NOT NULL DEFAULT 'USD',
  provider_project_id TEXT,
  api_key_id TEXT,
  user_id TEXT,
  team TEXT,
  project TEXT,
  cost_center TEXT,
  feature TEXT,
  environment TEXT,
  context_window TEXT,
  metadata JSONB NOT NULL DEFAULT '{}',
  UNIQUE (org_id, event_id),
  CHECK (coalesce(cached_input_tokens, 0) + coalesce(cache_creation_tokens, 0) <= input_tokens)
);
-- For retention: events come nearly in the order of their time, and this index costs next to nothing when they do.
CREATE INDEX usage_events_occurred ON raw.usage_events USING brin (occurred_at);
COMMENT ON COLUMN raw.usage_events.is_error IS 'NULL: the sender does not say whether the request succeeded';

-- Written with the event and deleted by the transaction that makes it a record: an event is in both or in neither, so what a
-- flush sees here is exactly what is left, in whatever order transactions commit.
CREATE TABLE raw.pending_usage_events (
  org_id UUID NOT NULL,
  provider TEXT NOT NULL,
  event_number BIGINT NOT NULL,
  PRIMARY KEY (org_id, provider, event_number)
);
-- Its rows come and go within a minute.
ALTER TABLE raw.pending_usage_events SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

ALTER TABLE raw.sync_history DROP CONSTRAINT sync_history_kind_check;
ALTER TABLE raw.sync_history ADD CONSTRAINT sync_history_kind_check CHECK (kind IN ('sync', 'import', 'events'));
ALTER TABLE raw.usage_changes DROP CONSTRAINT usage_changes_reason_check;
ALTER TABLE raw.usage_changes ADD CONSTRAINT usage_changes_reason_check
CHECK (reason IN ('sync', 'import', 'attribution', 'authority', 'retention', 'time_zone', 'events'));

-- Access: an organisation's first event of a provider makes the connection that its records belong to, and a loader flushes.
CREATE OR REPLACE FUNCTION app.apply_access() RETURNS BOOLEAN
LANGUAGE plpgsql AS
$$
BEGIN
  IF NOT app.apply_access_to_relations() THEN
    RETURN false;
  END IF;
  PERFORM app.apply_quota_access();
  EXECUTE format('GRANT INSERT (org_id, name, provider, source) ON app.provider_connections TO %I', app.access_role('loader'));
  RETURN true;
END
$$;
