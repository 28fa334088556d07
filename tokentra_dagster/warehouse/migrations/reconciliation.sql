-- What reconciliation, dimensions and local days need: specification section 2, corrections 5 and 43.

-- Names that mean the same -------------------------------------------------------------------------------------------

-- Correction 43. No organisation: holds for all, unless an organisation has an alias of its own.
CREATE TABLE app.model_aliases (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  org_id UUID REFERENCES app.organizations (id),
  provider TEXT CHECK (provider IN ('openai', 'anthropic', 'google', 'azure', 'aws')),
  alias TEXT NOT NULL CHECK (alias <> ''),
  canonical TEXT NOT NULL CHECK (canonical <> ''),
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  UNIQUE NULLS NOT DISTINCT (org_id, provider, alias)
);
COMMENT ON COLUMN app.model_aliases.provider IS 'NULL: whatever the provider';
COMMENT ON COLUMN app.model_aliases.alias IS 'A model as spelled, exact or with * wildcards, upper and lower case alike; without any alias app.canonical_model decides';

CREATE TABLE app.environment_aliases (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  org_id UUID REFERENCES app.organizations (id),
  alias TEXT NOT NULL CHECK (alias <> ''),
  canonical TEXT NOT NULL CHECK (canonical <> ''),
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  UNIQUE NULLS NOT DISTINCT (org_id, alias)
);
COMMENT ON COLUMN app.environment_aliases.alias IS 'An environment as spelled, exact or with * wildcards, upper and lower case alike';

INSERT INTO app.environment_aliases (alias, canonical) VALUES
('production', 'production'), ('prod', 'production'), ('prd', 'production'), ('live', 'production'),
('staging', 'staging'), ('stage', 'staging'), ('stg', 'staging'),
('development', 'development'), ('dev', 'development'), ('devel', 'development'),
('test', 'test'), ('testing', 'test'), ('tst', 'test');

-- An alias as a pattern for LIKE, on lower-case text.
CREATE FUNCTION app.alias_pattern(alias TEXT) RETURNS TEXT
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT replace(replace(replace(replace(lower(alias), '\', '\\'), '%', '\%'), '_', '\_'), '*', '%') $$;

-- The one name of a model: lower case, without folder, region, vendor, snapshot and `-latest`. Versions and `-preview` stay,
-- for these are other models at other prices; so do fine-tunes, and ARNs that say nothing about the model. The family
-- (tokentra_dagster/model_names.py) of the canonical name is that of the name as spelled.
CREATE FUNCTION app.canonical_model(provider TEXT, model TEXT) RETURNS TEXT
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS
$$
DECLARE
  name TEXT := lower(trim(model));
BEGIN
  IF name = '' THEN
    RETURN NULL;
  END IF;
  IF name LIKE 'ft:%' OR (name LIKE 'arn:%' AND name !~ ':(foundation-model|inference-profile)/') THEN
    RETURN name;
  END IF;
  name := regexp_replace(name, '^.*/', '');
  name := regexp_replace(name, '@.*$', '');
  name := regexp_replace(name, '^(us|us-gov|eu|apac|ap|au|ca|jp|sa|me|af|global)\.(?=[a-z0-9-]+\.)', '');
  name := regexp_replace(name, '^(ai21|amazon|anthropic|cohere|deepseek|google|luma|meta|minimax|mistral|moonshot|moonshotai|nvidia|openai|qwen|stability|twelvelabs|writer|zai)\.', '');
  IF provider = 'azure' THEN
    name := replace(name, 'gpt-35', 'gpt-3.5');
  END IF;
  name := regexp_replace(name, '((-v\d+)?:\d+(:[0-9a-z]+)?|-v\d+)$', '');
  name := regexp_replace(name, '(-(20\d{2}-\d{2}-\d{2}|20\d{6}|\d{4}|00\d|latest))+$', '');
  RETURN nullif(name, '');
END
$$;

-- Names that change --------------------------------------------------------------------------------------------------

-- What an id was called when. The first name known of an id has no valid_from: it holds for the time before it was read too.
CREATE TABLE raw.provider_entity_names (
  provider_connection_id UUID NOT NULL REFERENCES app.provider_connections (id),
  org_id UUID NOT NULL,
  provider TEXT NOT NULL,
  kind TEXT NOT NULL,
  entity_id TEXT NOT NULL,
  name TEXT,
  valid_from TIMESTAMPTZ,
  valid_to TIMESTAMPTZ,
  CHECK (valid_from < valid_to),
  UNIQUE NULLS NOT DISTINCT (provider_connection_id, kind, entity_id, valid_from),
  UNIQUE NULLS NOT DISTINCT (provider_connection_id, kind, entity_id, valid_to)
);

CREATE TABLE app.entity_names (
  kind TEXT NOT NULL CHECK (kind IN ('team', 'project', 'cost_center')),
  entity_id UUID NOT NULL,
  org_id UUID NOT NULL,
  name TEXT NOT NULL,
  valid_from TIMESTAMPTZ,
  valid_to TIMESTAMPTZ,
  CHECK (valid_from < valid_to),
  UNIQUE NULLS NOT DISTINCT (kind, entity_id, valid_from),
  UNIQUE NULLS NOT DISTINCT (kind, entity_id, valid_to)
);

-- The clock, not the transaction's time: who waits for another's change to commit began before it, but comes after it.
CREATE FUNCTION raw.keep_provider_name() RETURNS TRIGGER
LANGUAGE plpgsql AS
$$
DECLARE
  changed_at TIMESTAMPTZ;
BEGIN
  UPDATE raw.provider_entity_names AS n SET valid_to = greatest(clock_timestamp(), n.valid_from + INTERVAL '1 microsecond')
  WHERE n.provider_connection_id = NEW.provider_connection_id AND n.kind = NEW.kind AND n.entity_id = NEW.entity_id
    AND n.valid_to IS NULL AND n.name IS DISTINCT FROM NEW.name
  RETURNING n.valid_to INTO changed_at;
  INSERT INTO raw.provider_entity_names (provider_connection_id, org_id, provider, kind, entity_id, name, valid_from)
  VALUES (NEW.provider_connection_id, NEW.org_id, NEW.provider, NEW.kind, NEW.entity_id, NEW.name, changed_at)
  ON CONFLICT (provider_connection_id, kind, entity_id, valid_to) DO NOTHING;
  RETURN NULL;
END
$$;
CREATE TRIGGER keep_first_name AFTER INSERT ON raw.provider_entities
FOR EACH ROW EXECUTE FUNCTION raw.keep_provider_name();
CREATE TRIGGER keep_name AFTER UPDATE ON raw.provider_entities
FOR EACH ROW WHEN (OLD.name IS DISTINCT FROM NEW.name) EXECUTE FUNCTION raw.keep_provider_name();

CREATE FUNCTION app.keep_entity_name() RETURNS TRIGGER
LANGUAGE plpgsql AS
$$
DECLARE
  changed_at TIMESTAMPTZ;
BEGIN
  UPDATE app.entity_names AS n SET valid_to = greatest(clock_timestamp(), n.valid_from + INTERVAL '1 microsecond')
  WHERE n.kind = TG_ARGV[0] AND n.entity_id = NEW.id AND n.valid_to IS NULL AND n.name IS DISTINCT FROM NEW.name
  RETURNING n.valid_to INTO changed_at;
  INSERT INTO app.entity_names (kind, entity_id, org_id, name, valid_from)
  VALUES (TG_ARGV[0], NEW.id, NEW.org_id, NEW.name, changed_at)
  ON CONFLICT (kind, entity_id, valid_to) DO NOTHING;
  RETURN NULL;
END
$$;
CREATE TRIGGER keep_first_name AFTER INSERT ON app.teams FOR EACH ROW EXECUTE FUNCTION app.keep_entity_name('team');
CREATE TRIGGER keep_name AFTER UPDATE ON app.teams FOR EACH ROW
WHEN (OLD.name IS DISTINCT FROM NEW.name) EXECUTE FUNCTION app.keep_entity_name('team');
CREATE TRIGGER keep_first_name AFTER INSERT ON app.projects FOR EACH ROW EXECUTE FUNCTION app.keep_entity_name('project');
CREATE TRIGGER keep_name AFTER UPDATE ON app.projects FOR EACH ROW
WHEN (OLD.name IS DISTINCT FROM NEW.name) EXECUTE FUNCTION app.keep_entity_name('project');
CREATE TRIGGER keep_first_name AFTER INSERT ON app.cost_centers FOR EACH ROW EXECUTE FUNCTION app.keep_entity_name('cost_center');
CREATE TRIGGER keep_name AFTER UPDATE ON app.cost_centers FOR EACH ROW
WHEN (OLD.name IS DISTINCT FROM NEW.name) EXECUTE FUNCTION app.keep_entity_name('cost_center');

INSERT INTO raw.provider_entity_names (provider_connection_id, org_id, provider, kind, entity_id, name)
SELECT provider_connection_id, org_id, provider, kind, entity_id, name FROM raw.provider_entities;
INSERT INTO app.entity_names (kind, entity_id, org_id, name)
SELECT 'team', id, org_id, name FROM app.teams
UNION ALL
SELECT 'project', id, org_id, name FROM app.projects
UNION ALL
SELECT 'cost_center', id, org_id, name FROM app.cost_centers;

-- Money in another currency ------------------------------------------------------------------------------------------

CREATE TABLE app.exchange_rates (
  from_currency TEXT NOT NULL CHECK (from_currency ~ '^[A-Z]{3}$'),
  to_currency TEXT NOT NULL CHECK (to_currency ~ '^[A-Z]{3}$'),
  rate_date DATE NOT NULL,
  rate NUMERIC NOT NULL CHECK (rate > 0),
  source TEXT NOT NULL CHECK (source <> ''),
  PRIMARY KEY (from_currency, to_currency, rate_date),
  CHECK (from_currency <> to_currency)
);
COMMENT ON COLUMN app.exchange_rates.rate IS 'Units of to_currency for one unit of from_currency on that UTC day, and until a newer rate';

-- Local days ---------------------------------------------------------------------------------------------------------

ALTER TABLE raw.usage_changes DROP CONSTRAINT usage_changes_reason_check;
ALTER TABLE raw.usage_changes ADD CONSTRAINT usage_changes_reason_check
CHECK (reason IN ('sync', 'import', 'attribution', 'authority', 'retention', 'time_zone'));

-- Another time zone moves every local day of the organisation. Two days on either side: zones are up to 26 hours apart, and
-- what stood on the old zone's days must go.
CREATE FUNCTION raw.log_time_zone() RETURNS TRIGGER
LANGUAGE plpgsql AS
$$
BEGIN
  PERFORM pg_advisory_xact_lock(7265003);
  INSERT INTO raw.usage_changes (change_number, org_id, provider, provider_connection_id, window_start, window_end, reason)
  SELECT nextval('raw.usage_change_number'), NEW.id, span.provider, span.id,
    span.window_start - INTERVAL '48 hours', span.window_end + INTERVAL '48 hours', 'time_zone'
  FROM (
    SELECT c.id, c.provider, min(h.window_start) AS window_start, max(h.window_end) AS window_end
    FROM app.provider_connections AS c
    JOIN raw.sync_history AS h ON h.provider_connection_id = c.id AND h.status = 'completed'
    WHERE c.org_id = NEW.id
    GROUP BY c.id, c.provider
  ) AS span;
  RETURN NULL;
END
$$;
CREATE TRIGGER log_time_zone AFTER UPDATE ON app.organizations
FOR EACH ROW WHEN (OLD.time_zone IS DISTINCT FROM NEW.time_zone) EXECUTE FUNCTION raw.log_time_zone();
