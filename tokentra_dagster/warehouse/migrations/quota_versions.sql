-- Quotas as people set them (specification 2.4): what may be set, and how it was at any time (corrections 27 to 30).

COMMENT ON COLUMN app.usage_quotas.current_tokens IS 'Not kept up to date (correction 30): usage is read from quota_status and quota_usage_history';
COMMENT ON COLUMN app.usage_quotas.period_reset_day IS 'weekly: 0 (Sunday) to 6 (Saturday); monthly: 1 to 31, clamped to the month''s end; else unused';
COMMENT ON COLUMN app.usage_quotas.period_reset_hour IS 'UTC hour at which a period begins, 0 to 23; unused for hourly quotas';

UPDATE app.usage_quotas
SET period_reset_day = COALESCE(period_reset_day, 1),
  period_reset_hour = COALESCE(period_reset_hour, 0),
  warning_threshold_pct = COALESCE(warning_threshold_pct, 80),
  critical_threshold_pct = COALESCE(critical_threshold_pct, 95),
  is_active = COALESCE(is_active, true),
  created_at = COALESCE(created_at, now()),
  updated_at = COALESCE(updated_at, now());

ALTER TABLE app.usage_quotas
  ALTER COLUMN period_reset_day SET NOT NULL,
  ALTER COLUMN period_reset_hour SET NOT NULL,
  ALTER COLUMN warning_threshold_pct SET NOT NULL,
  ALTER COLUMN critical_threshold_pct SET NOT NULL,
  ALTER COLUMN is_active SET NOT NULL,
  ALTER COLUMN created_at SET NOT NULL,
  ALTER COLUMN updated_at SET NOT NULL,
  -- The names are what people read: PostgreSQL says `violates check constraint "<name>"`.
  ADD CONSTRAINT only_the_column_of_the_scope_type_is_set CHECK (
    (scope_type = 'team') = (team_id IS NOT NULL)
    AND (scope_type = 'project') = (project_id IS NOT NULL)
    AND (scope_type = 'user') = (user_identifier IS NOT NULL)
    AND (scope_type = 'api_key') = (api_key_id IS NOT NULL)
    AND (scope_type = 'feature') = (feature IS NOT NULL)
  ),
  ADD CONSTRAINT name_and_scope_are_not_empty CHECK (
    name <> '' AND COALESCE(user_identifier, 'x') <> '' AND COALESCE(api_key_id, 'x') <> '' AND COALESCE(feature, 'x') <> ''
  ),
  ADD CONSTRAINT limits_are_positive CHECK (
    token_limit > 0 AND request_limit > 0 AND input_token_limit > 0 AND output_token_limit > 0
  ),
  ADD CONSTRAINT weekly_reset_day_is_0_sunday_to_6_saturday CHECK (period_type <> 'weekly' OR period_reset_day BETWEEN 0 AND 6),
  ADD CONSTRAINT monthly_reset_day_is_1_to_31 CHECK (period_type <> 'monthly' OR period_reset_day BETWEEN 1 AND 31),
  ADD CONSTRAINT reset_hour_is_0_to_23_utc CHECK (period_reset_hour BETWEEN 0 AND 23),
  ADD CONSTRAINT thresholds_are_above_0_in_order_and_at_most_100 CHECK (
    0 < warning_threshold_pct AND warning_threshold_pct <= critical_threshold_pct AND critical_threshold_pct <= 100
  );

-- Every state that a quota was in, so that a past period is judged by the limits of its time, and a deleted quota keeps its
-- history. No foreign keys, for the same reason.
CREATE TABLE app.usage_quota_versions (
  quota_id UUID NOT NULL,
  version INTEGER NOT NULL,
  valid_from TIMESTAMPTZ NOT NULL,
  valid_to TIMESTAMPTZ,
  org_id UUID NOT NULL,
  name TEXT NOT NULL,
  scope_type TEXT NOT NULL,
  team_id UUID,
  project_id UUID,
  user_identifier TEXT,
  api_key_id TEXT,
  feature TEXT,
  token_limit BIGINT,
  request_limit BIGINT,
  input_token_limit BIGINT,
  output_token_limit BIGINT,
  period_type TEXT NOT NULL,
  period_reset_day INTEGER NOT NULL,
  period_reset_hour INTEGER NOT NULL,
  enforcement_mode TEXT NOT NULL,
  warning_threshold_pct INTEGER NOT NULL,
  critical_threshold_pct INTEGER NOT NULL,
  is_active BOOLEAN NOT NULL,
  written_by XID8 NOT NULL DEFAULT pg_current_xact_id(),
  PRIMARY KEY (quota_id, version),
  CHECK (valid_from < valid_to)
);
CREATE UNIQUE INDEX usage_quota_versions_open ON app.usage_quota_versions (quota_id) WHERE valid_to IS NULL;
COMMENT ON TABLE app.usage_quota_versions IS 'States of usage_quotas, written by its trigger; valid in [valid_from, valid_to), NULL: still';
COMMENT ON COLUMN app.usage_quota_versions.written_by IS 'The transaction: two changes in one are one version';

-- The first version begins when the quota did (created_at, which may lie in the past). A later one begins with its
-- transaction, but always after the one before: transactions may commit in another order than they began.
CREATE FUNCTION app.keep_quota_versions() RETURNS TRIGGER
LANGUAGE plpgsql AS
$$
DECLARE
  quota app.usage_quotas := CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
  newest app.usage_quota_versions;
  moment TIMESTAMPTZ;
BEGIN
  IF TG_OP = 'UPDATE' AND NEW.id <> OLD.id THEN
    RAISE EXCEPTION 'the id of quota % cannot change: insert a new quota instead', OLD.id USING ERRCODE = 'integrity_constraint_violation';
  END IF;

  -- What this very transaction wrote before was never seen by anybody: undo it.
  DELETE FROM app.usage_quota_versions AS v
  WHERE v.quota_id = quota.id AND v.valid_to IS NULL AND v.written_by = pg_current_xact_id()
  RETURNING * INTO newest;
  IF FOUND THEN
    UPDATE app.usage_quota_versions AS v SET valid_to = NULL
    WHERE v.quota_id = quota.id AND v.version = newest.version - 1 AND v.valid_to = newest.valid_from;
  END IF;

  SELECT * INTO newest FROM app.usage_quota_versions AS v WHERE v.quota_id = quota.id ORDER BY v.version DESC LIMIT 1;
  moment := greatest(now(), newest.valid_from + interval '1 microsecond', newest.valid_to);
  IF newest.version IS NULL THEN
    moment := least(quota.created_at, now());
  ELSIF TG_OP = 'UPDATE' AND NEW.created_at <> OLD.created_at THEN
    UPDATE app.usage_quota_versions AS v
    SET valid_from = least(quota.created_at, v.valid_to - interval '1 microsecond', now())
    WHERE v.quota_id = quota.id AND v.version = 1;
  END IF;

  IF newest.version IS NOT NULL AND newest.valid_to IS NULL THEN
    IF TG_OP <> 'DELETE'
      AND (newest.org_id, newest.name, newest.scope_type, newest.team_id, newest.project_id, newest.user_identifier, newest.api_key_id,
        newest.feature, newest.token_limit, newest.request_limit, newest.input_token_limit, newest.output_token_limit,
        newest.period_type, newest.period_reset_day, newest.period_reset_hour, newest.enforcement_mode,
        newest.warning_threshold_pct, newest.critical_threshold_pct, newest.is_active)
      IS NOT DISTINCT FROM (quota.org_id, quota.name, quota.scope_type, quota.team_id, quota.project_id, quota.user_identifier, quota.api_key_id,
        quota.feature, quota.token_limit, quota.request_limit, quota.input_token_limit, quota.output_token_limit,
        quota.period_type, quota.period_reset_day, quota.period_reset_hour, quota.enforcement_mode,
        quota.warning_threshold_pct, quota.critical_threshold_pct, quota.is_active)
    THEN
      RETURN NULL;
    END IF;
    UPDATE app.usage_quota_versions AS v SET valid_to = moment WHERE v.quota_id = quota.id AND v.version = newest.version;
  END IF;

  IF TG_OP <> 'DELETE' THEN
    INSERT INTO app.usage_quota_versions (
      quota_id, version, valid_from, org_id, name, scope_type, team_id, project_id, user_identifier, api_key_id, feature,
      token_limit, request_limit, input_token_limit, output_token_limit, period_type, period_reset_day, period_reset_hour,
      enforcement_mode, warning_threshold_pct, critical_threshold_pct, is_active
    ) VALUES (
      quota.id, COALESCE(newest.version, 0) + 1, moment, quota.org_id, quota.name, quota.scope_type, quota.team_id,
      quota.project_id, quota.user_identifier, quota.api_key_id, quota.feature,
      quota.token_limit, quota.request_limit, quota.input_token_limit, quota.output_token_limit, quota.period_type,
      quota.period_reset_day, quota.period_reset_hour, quota.enforcement_mode, quota.warning_threshold_pct,
      quota.critical_threshold_pct, quota.is_active
    );
  END IF;
  RETURN NULL;
END
$$;
CREATE TRIGGER keep_quota_versions AFTER INSERT OR UPDATE OR DELETE ON app.usage_quotas
FOR EACH ROW EXECUTE FUNCTION app.keep_quota_versions();

INSERT INTO app.usage_quota_versions (
  quota_id, version, valid_from, org_id, name, scope_type, team_id, project_id, user_identifier, api_key_id, feature,
  token_limit, request_limit, input_token_limit, output_token_limit, period_type, period_reset_day, period_reset_hour,
  enforcement_mode, warning_threshold_pct, critical_threshold_pct, is_active
)
SELECT
  id, 1, least(created_at, now()), org_id, name, scope_type, team_id, project_id, user_identifier, api_key_id, feature,
  token_limit, request_limit, input_token_limit, output_token_limit, period_type, period_reset_day, period_reset_hour,
  enforcement_mode, warning_threshold_pct, critical_threshold_pct, is_active
FROM app.usage_quotas;

CREATE TABLE app.quota_events (
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  quota_id UUID NOT NULL,
  period_start TIMESTAMPTZ NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('alert', 'throttle', 'block')),
  at TIMESTAMPTZ NOT NULL DEFAULT now(),
  details JSONB NOT NULL DEFAULT '{}'
);
CREATE INDEX quota_events_period ON app.quota_events (quota_id, period_start);
COMMENT ON TABLE app.quota_events IS 'What was done because of a quota: alerts sent, requests throttled, requests blocked';
