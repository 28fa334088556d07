-- The first schema: specification section 2, with corrections 1, 2, 8, 10, 11 and the design's additions.

CREATE SCHEMA IF NOT EXISTS app;
CREATE SCHEMA IF NOT EXISTS raw;
CREATE SCHEMA IF NOT EXISTS staging;
CREATE SCHEMA IF NOT EXISTS intermediate;
CREATE SCHEMA IF NOT EXISTS marts;
CREATE SCHEMA IF NOT EXISTS analytics;

-- app: what people set up ------------------------------------------------------------------------------------------

CREATE TABLE app.organizations (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  name TEXT NOT NULL UNIQUE CHECK (name <> ''),
  time_zone TEXT NOT NULL DEFAULT 'UTC',
  currency TEXT NOT NULL DEFAULT 'USD',
  created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE app.users (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  org_id UUID NOT NULL REFERENCES app.organizations (id),
  email TEXT NOT NULL,
  name TEXT,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  UNIQUE (org_id, email)
);

CREATE TABLE app.teams (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  org_id UUID NOT NULL REFERENCES app.organizations (id),
  name TEXT NOT NULL CHECK (name <> ''),
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  UNIQUE (org_id, name)
);

CREATE TABLE app.projects (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  org_id UUID NOT NULL REFERENCES app.organizations (id),
  team_id UUID REFERENCES app.teams (id),
  name TEXT NOT NULL CHECK (name <> ''),
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  UNIQUE (org_id, name)
);

CREATE TABLE app.cost_centers (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  org_id UUID NOT NULL REFERENCES app.organizations (id),
  name TEXT NOT NULL CHECK (name <> ''),
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  UNIQUE (org_id, name)
);

CREATE TABLE app.provider_connections (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  org_id UUID NOT NULL REFERENCES app.organizations (id),
  name TEXT NOT NULL CHECK (name <> ''),
  provider TEXT NOT NULL CHECK (provider IN ('openai', 'anthropic', 'google', 'azure', 'aws')),
  source TEXT NOT NULL DEFAULT 'provider_api' CHECK (source IN ('provider_api', 'gateway', 'events', 'file')),
  secret_ref TEXT CHECK (secret_ref ~ '^(env|file):.+'),
  base_url TEXT,
  options JSONB NOT NULL DEFAULT '{}',
  is_active BOOLEAN NOT NULL DEFAULT true,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  UNIQUE (org_id, name)
);
COMMENT ON COLUMN app.provider_connections.secret_ref IS 'Where the key is (env:NAME or file:PATH), never the key itself';

-- Correction 11: which source counts for an organisation and provider. No row: the first of provider_api, gateway,
-- events, file for which a connection exists.
CREATE TABLE app.source_authorities (
  org_id UUID NOT NULL REFERENCES app.organizations (id),
  provider TEXT NOT NULL CHECK (provider IN ('openai', 'anthropic', 'google', 'azure', 'aws')),
  source TEXT NOT NULL CHECK (source IN ('provider_api', 'gateway', 'events', 'file')),
  PRIMARY KEY (org_id, provider)
);

CREATE TABLE app.attribution_rules (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  org_id UUID NOT NULL REFERENCES app.organizations (id),
  priority INTEGER NOT NULL DEFAULT 100,
  match_field TEXT NOT NULL CHECK (match_field IN ('project', 'workspace', 'api_key', 'user', 'model')),
  match_value TEXT NOT NULL CHECK (match_value <> ''),
  provider TEXT CHECK (provider IN ('openai', 'anthropic', 'google', 'azure', 'aws')),
  team_id UUID REFERENCES app.teams (id),
  project_id UUID REFERENCES app.projects (id),
  cost_center_id UUID REFERENCES app.cost_centers (id),
  feature TEXT,
  environment TEXT,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  UNIQUE (org_id, priority, match_field, match_value),
  CHECK (num_nonnulls(team_id, project_id, cost_center_id, feature, environment) > 0)
);
COMMENT ON COLUMN app.attribution_rules.match_value IS 'Provider id or name, exact or with * wildcards; the lowest priority number that matches fills a field';

CREATE TABLE app.usage_quotas (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  org_id UUID NOT NULL REFERENCES app.organizations (id),
  name TEXT NOT NULL,
  description TEXT,
  scope_type TEXT NOT NULL,
  team_id UUID REFERENCES app.teams (id),
  project_id UUID REFERENCES app.projects (id),
  user_identifier TEXT,
  api_key_id TEXT,
  feature TEXT,
  token_limit BIGINT,
  request_limit BIGINT,
  input_token_limit BIGINT,
  output_token_limit BIGINT,
  period_type TEXT NOT NULL DEFAULT 'monthly',
  period_reset_day INTEGER DEFAULT 1,
  period_reset_hour INTEGER DEFAULT 0,
  current_tokens BIGINT DEFAULT 0,
  current_requests BIGINT DEFAULT 0,
  current_input_tokens BIGINT DEFAULT 0,
  current_output_tokens BIGINT DEFAULT 0,
  current_period_start TIMESTAMPTZ,
  current_period_end TIMESTAMPTZ,
  enforcement_mode TEXT NOT NULL DEFAULT 'alert',
  warning_threshold_pct INTEGER DEFAULT 80,
  critical_threshold_pct INTEGER DEFAULT 95,
  is_active BOOLEAN DEFAULT true,
  created_by UUID REFERENCES app.users (id),
  created_at TIMESTAMPTZ DEFAULT now(),
  updated_at TIMESTAMPTZ DEFAULT now(),
  UNIQUE (org_id, name),
  CONSTRAINT valid_scope_type CHECK (scope_type IN ('organization', 'team', 'project', 'user', 'api_key', 'feature')),
  CONSTRAINT valid_period_type CHECK (period_type IN ('hourly', 'daily', 'weekly', 'monthly')),
  CONSTRAINT valid_enforcement CHECK (enforcement_mode IN ('alert', 'throttle', 'block')),
  CONSTRAINT has_at_least_one_limit CHECK (num_nonnulls(token_limit, request_limit, input_token_limit, output_token_limit) > 0)
);

-- raw: what sources said ---------------------------------------------------------------------------------------------

CREATE TABLE raw.sync_history (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  org_id UUID NOT NULL REFERENCES app.organizations (id),
  provider_connection_id UUID NOT NULL REFERENCES app.provider_connections (id),
  kind TEXT NOT NULL CHECK (kind IN ('sync', 'import')),
  granularity TEXT NOT NULL CHECK (granularity IN ('1m', '1h', '1d')),
  window_start TIMESTAMPTZ NOT NULL,
  window_end TIMESTAMPTZ NOT NULL,
  status TEXT NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'completed', 'failed')),
  started_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  completed_at TIMESTAMPTZ,
  covered_until TIMESTAMPTZ,
  final_before TIMESTAMPTZ,
  records_loaded BIGINT,
  records_replaced BIGINT,
  records_rejected BIGINT,
  costs_loaded BIGINT,
  pages_fetched BIGINT,
  error TEXT,
  error_kind TEXT CHECK (error_kind IN ('permanent', 'transient', 'crashed')),
  run_id TEXT,
  CHECK (window_start < window_end)
);
CREATE INDEX sync_history_connection ON raw.sync_history (provider_connection_id, window_start);
COMMENT ON COLUMN raw.sync_history.covered_until IS 'The end of what this sync could see: the earlier of window_end and its start';
COMMENT ON COLUMN raw.sync_history.final_before IS 'Usage before this no longer changed at the source when the sync ran; what is younger is provisional';

-- What changed in usage_records, in commit order: every writer appends here last, under one advisory lock held until it
-- commits, so that a reader who sees number n sees every smaller number that will ever exist (docs/decisions/0002).
CREATE TABLE raw.usage_changes (
  change_number BIGINT PRIMARY KEY,
  org_id UUID NOT NULL,
  provider TEXT NOT NULL,
  provider_connection_id UUID,
  window_start TIMESTAMPTZ NOT NULL,
  window_end TIMESTAMPTZ NOT NULL,
  reason TEXT NOT NULL CHECK (reason IN ('sync', 'import', 'attribution', 'authority', 'retention')),
  sync_id UUID,
  committed_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CHECK (window_start < window_end)
);
CREATE SEQUENCE raw.usage_change_number;

-- A new kind of source can take over what counts (correction 11), so all that the organisation and provider have is then
-- to be summed anew: a first connection of a more authoritative source changes totals that are long built.
CREATE FUNCTION raw.log_new_source() RETURNS TRIGGER
LANGUAGE plpgsql AS
$$
BEGIN
  IF EXISTS (SELECT FROM app.provider_connections AS c
             WHERE c.org_id = NEW.org_id AND c.provider = NEW.provider AND c.source = NEW.source AND c.id <> NEW.id) THEN
    RETURN NULL;
  END IF;
  PERFORM pg_advisory_xact_lock(7265003);
  INSERT INTO raw.usage_changes (change_number, org_id, provider, provider_connection_id, window_start, window_end, reason)
  SELECT nextval('raw.usage_change_number'), NEW.org_id, NEW.provider, span.id, span.window_start, span.window_end, 'authority'
  FROM (
    SELECT c.id, min(h.window_start) AS window_start, max(h.window_end) AS window_end
    FROM app.provider_connections AS c
    JOIN raw.sync_history AS h ON h.provider_connection_id = c.id AND h.status = 'completed'
    WHERE c.org_id = NEW.org_id AND c.provider = NEW.provider
    GROUP BY c.id
  ) AS span;
  RETURN NULL;
END
$$;
CREATE TRIGGER log_new_source AFTER INSERT ON app.provider_connections
FOR EACH ROW EXECUTE FUNCTION raw.log_new_source();

-- How far each incremental model has read raw.usage_changes; written by the model's own transaction.
CREATE TABLE raw.model_progress (
  model TEXT PRIMARY KEY,
  previous_change_number BIGINT NOT NULL DEFAULT 0,
  change_number BIGINT NOT NULL,
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE raw.usage_records (
  id UUID NOT NULL DEFAULT gen_random_uuid(),
  org_id UUID NOT NULL,
  provider_connection_id UUID NOT NULL,
  provider TEXT NOT NULL,
  source TEXT NOT NULL,
  timestamp TIMESTAMPTZ NOT NULL,
  bucket_start TIMESTAMPTZ NOT NULL,
  bucket_end TIMESTAMPTZ NOT NULL,
  granularity TEXT NOT NULL,
  model TEXT NOT NULL,
  model_family TEXT,
  request_type TEXT,
  service_type TEXT,
  service_tier TEXT,
  input_tokens BIGINT NOT NULL DEFAULT 0,
  output_tokens BIGINT NOT NULL DEFAULT 0,
  total_tokens BIGINT GENERATED ALWAYS AS (input_tokens + output_tokens) STORED,
  cached_input_tokens BIGINT,
  cache_creation_tokens BIGINT,
  quantity NUMERIC,
  quantity_unit TEXT,
  request_count BIGINT,
  success_count BIGINT,
  error_count BIGINT,
  total_latency_ms BIGINT,
  min_latency_ms BIGINT,
  max_latency_ms BIGINT,
  p50_latency_ms BIGINT,
  p95_latency_ms BIGINT,
  p99_latency_ms BIGINT,
  latency_histogram JSONB,
  estimated_cost NUMERIC(24, 12),
  cost_basis TEXT NOT NULL DEFAULT 'unpriced',
  price_source TEXT,
  currency TEXT NOT NULL DEFAULT 'USD',
  team_id UUID,
  project_id UUID,
  cost_center_id UUID,
  feature TEXT,
  environment TEXT,
  said JSONB,
  provider_project_id TEXT,
  api_key_id TEXT,
  context_window TEXT,
  token_details JSONB,
  user_ids TEXT[],
  unique_user_count INTEGER,
  provider_metadata JSONB NOT NULL DEFAULT '{}',
  sync_id UUID,
  synced_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  PRIMARY KEY (provider_connection_id, timestamp, id),
  CONSTRAINT valid_provider CHECK (provider IN ('openai', 'anthropic', 'google', 'azure', 'aws')),
  CONSTRAINT valid_granularity CHECK (granularity IN ('1m', '1h', '1d')),
  CONSTRAINT valid_cost_basis CHECK (cost_basis IN ('actual', 'estimate', 'unpriced') AND (cost_basis = 'unpriced') = (estimated_cost IS NULL)),
  CONSTRAINT non_negative_tokens CHECK (input_tokens >= 0 AND output_tokens >= 0),
  CONSTRAINT parts_within_input CHECK (COALESCE(cached_input_tokens, 0) >= 0 AND COALESCE(cache_creation_tokens, 0) >= 0
    AND COALESCE(cached_input_tokens, 0) + COALESCE(cache_creation_tokens, 0) <= input_tokens),
  CONSTRAINT non_negative_requests CHECK (request_count >= 0)
) PARTITION BY RANGE (timestamp);
COMMENT ON COLUMN raw.usage_records.said IS 'Which of team_id, project_id, cost_center_id, feature, environment the source itself gave (an array of names); rules never change those';
-- Catches what no monthly partition holds, so that no record ever fails for want of one (correction 2).
CREATE TABLE raw.usage_records_default PARTITION OF raw.usage_records DEFAULT;

CREATE TABLE raw.provider_costs (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  org_id UUID NOT NULL,
  provider_connection_id UUID NOT NULL REFERENCES app.provider_connections (id),
  provider TEXT NOT NULL,
  bucket_start TIMESTAMPTZ NOT NULL,
  bucket_end TIMESTAMPTZ NOT NULL,
  amount NUMERIC NOT NULL,
  list_amount NUMERIC,
  currency TEXT NOT NULL,
  line_item TEXT,
  model TEXT,
  cost_type TEXT,
  token_type TEXT,
  provider_project_id TEXT,
  api_key_id TEXT,
  user_id TEXT,
  quantity NUMERIC,
  quantity_unit TEXT,
  provider_metadata JSONB NOT NULL DEFAULT '{}',
  sync_id UUID,
  synced_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX provider_costs_connection ON raw.provider_costs (provider_connection_id, bucket_start);

CREATE TABLE raw.rejected_records (
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  org_id UUID NOT NULL,
  provider_connection_id UUID NOT NULL,
  sync_id UUID NOT NULL,
  window_start TIMESTAMPTZ NOT NULL,
  window_end TIMESTAMPTZ NOT NULL,
  bucket_start TIMESTAMPTZ,
  line_number BIGINT,
  reason TEXT NOT NULL,
  payload JSONB NOT NULL,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX rejected_records_connection ON raw.rejected_records (provider_connection_id, window_start);

CREATE TABLE raw.provider_entities (
  provider_connection_id UUID NOT NULL REFERENCES app.provider_connections (id),
  org_id UUID NOT NULL,
  provider TEXT NOT NULL,
  kind TEXT NOT NULL,
  entity_id TEXT NOT NULL,
  name TEXT,
  provider_metadata JSONB NOT NULL DEFAULT '{}',
  seen_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  PRIMARY KEY (provider_connection_id, kind, entity_id)
);

-- Latency histograms: bucket i holds (1.02^(i-1), 1.02^i] ms, so that a percentile read from a merged histogram is
-- within 1 % of the true one (correction 6). The same bounds are in tokentra_dagster/latency.py.
CREATE FUNCTION raw.latency_bucket(latency_ms NUMERIC) RETURNS INTEGER
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT CASE WHEN latency_ms <= 1 THEN 0 ELSE ceil(round(ln(latency_ms::FLOAT)::NUMERIC / ln(1.02::FLOAT)::NUMERIC, 9))::INTEGER END $$;

CREATE FUNCTION raw.latency_percentile(histogram JSONB, quantile FLOAT) RETURNS INTEGER
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$
  SELECT round(2 * power(1.02, bucket) / 2.02)::INTEGER
  FROM (
    SELECT key::INTEGER AS bucket,
      sum(value::BIGINT) OVER (ORDER BY key::INTEGER) AS reached,
      sum(value::BIGINT) OVER () AS total
    FROM jsonb_each_text(histogram)
  ) AS counted
  WHERE reached >= greatest(ceil(quantile * total), 1)
  ORDER BY bucket
  LIMIT 1
$$;
