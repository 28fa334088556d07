-- Whether a request may go ahead (specification 8, corrections 29 and 31; docs/quotas.md). What clients call is in quota_calls.sql.

CREATE TABLE app.quota_reservations (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  org_id UUID NOT NULL,
  idempotency_key TEXT CHECK (idempotency_key <> ''),
  estimate app.quota_measures NOT NULL,
  actual app.quota_measures,
  state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'settled', 'released')),
  quota_ids UUID[] NOT NULL DEFAULT '{}',
  period_starts TIMESTAMPTZ[] NOT NULL DEFAULT '{}',
  violations JSONB NOT NULL DEFAULT '[]',
  warnings JSONB NOT NULL DEFAULT '[]',
  created_at TIMESTAMPTZ NOT NULL,
  expires_at TIMESTAMPTZ NOT NULL,
  closed_at TIMESTAMPTZ,
  UNIQUE (org_id, idempotency_key)
) WITH (fillfactor = 70);
CREATE INDEX quota_reservations_created ON app.quota_reservations USING brin (created_at);
COMMENT ON TABLE app.quota_reservations IS 'Reservations of the last two days; what they hold of each quota is in quota_holds while they are open';
COMMENT ON COLUMN app.quota_reservations.quota_ids IS 'The quotas that it counts against, in the order in which they are locked; period_starts are their periods';

ALTER TABLE app.reader_organizations ADD COLUMN may_reserve BOOLEAN NOT NULL DEFAULT false;
COMMENT ON COLUMN app.reader_organizations.may_reserve IS 'The login may reserve from the quotas of the organisation; without it, it only checks them';

CREATE TYPE app.quota_scope AS (org_id UUID, team_id UUID, project_id UUID, user_identifier TEXT, api_key_id TEXT, feature TEXT);
CREATE TYPE app.quota_judgement AS (
  decision TEXT, reason TEXT, retry_at TIMESTAMPTZ, violations JSONB, warnings JSONB, quota_ids UUID[], period_starts TIMESTAMPTZ[]
);

-- Who logged in is the owner, or a login of that organisation; to reserve, one that may.
CREATE FUNCTION app.has_quota_access(p_org_id UUID, p_reserve BOOLEAN) RETURNS BOOLEAN
LANGUAGE sql STABLE AS
$$
  SELECT pg_has_role(session_user, current_user, 'MEMBER') OR EXISTS (
    SELECT FROM app.reader_organizations AS r
    WHERE r.role_name = session_user AND (r.org_id = p_org_id OR r.org_id IS NULL) AND (r.may_reserve OR NOT p_reserve)
  )
$$;

CREATE FUNCTION app.require_quota_access(p_org_id UUID, p_reserve BOOLEAN) RETURNS VOID
LANGUAGE plpgsql STABLE AS
$$
BEGIN
  IF NOT app.has_quota_access(p_org_id, p_reserve) THEN
    RAISE EXCEPTION '% may not % quotas of organisation %', session_user, CASE WHEN p_reserve THEN 'reserve' ELSE 'check' END,
      COALESCE(p_org_id::TEXT, 'NULL') USING ERRCODE = 'insufficient_privilege', HINT = 'The owner decides: docs/quotas.md, "Who may call".';
  END IF;
END
$$;

-- Tokens with their parts. A part that nobody knows may be all of the tokens, so that is what counts against its limit.
CREATE FUNCTION app.quota_measures_of(p_tokens BIGINT, p_input_tokens BIGINT, p_output_tokens BIGINT, p_requests BIGINT) RETURNS app.quota_measures
LANGUAGE plpgsql IMMUTABLE AS
$$
DECLARE
  v_total BIGINT := COALESCE(p_tokens, p_input_tokens + p_output_tokens);
BEGIN
  IF v_total IS NULL THEN
    RAISE EXCEPTION 'the tokens of the request are not given: give the total, or input and output tokens (0 for a request without tokens)'
      USING ERRCODE = 'invalid_parameter_value';
  ELSIF v_total NOT BETWEEN 0 AND 1000000000000000 OR COALESCE(p_requests, -1) NOT BETWEEN 0 AND 1000000000000000
    OR COALESCE(p_input_tokens, 0) < 0 OR COALESCE(p_output_tokens, 0) < 0 THEN
    RAISE EXCEPTION 'tokens %, input tokens %, output tokens %, requests %: use whole numbers from 0 to 10^15', v_total,
      COALESCE(p_input_tokens::TEXT, 'NULL'), COALESCE(p_output_tokens::TEXT, 'NULL'), COALESCE(p_requests::TEXT, 'NULL')
      USING ERRCODE = 'invalid_parameter_value';
  ELSIF COALESCE(p_input_tokens, 0) + COALESCE(p_output_tokens, 0) > v_total
    OR p_input_tokens + p_output_tokens <> v_total THEN
    RAISE EXCEPTION 'tokens % are not input tokens % and output tokens % together: leave out what is not known', v_total,
      COALESCE(p_input_tokens::TEXT, 'NULL'), COALESCE(p_output_tokens::TEXT, 'NULL')
      USING ERRCODE = 'invalid_parameter_value';
  END IF;
  RETURN ROW(v_total, p_requests, COALESCE(p_input_tokens, v_total - p_output_tokens, v_total),
    COALESCE(p_output_tokens, v_total - p_input_tokens, v_total))::app.quota_measures;
END
$$;

-- As the header Retry-After says it: whole seconds, at least 1.
CREATE FUNCTION app.whole_seconds(wait INTERVAL) RETURNS INTEGER
LANGUAGE sql IMMUTABLE STRICT AS
$$ SELECT greatest(ceil(extract(epoch FROM wait)), 1)::INTEGER $$;

-- When so much of what is reserved will have expired that `p_missing` more has room; NULL where that is not enough.
CREATE FUNCTION app.quota_room_at(p_quota_id UUID, p_period_start TIMESTAMPTZ, p_limit_type TEXT, p_missing BIGINT, p_at TIMESTAMPTZ) RETURNS TIMESTAMPTZ
LANGUAGE plpgsql STABLE AS
$$
DECLARE
  v_hold app.quota_holds;
  v_freed BIGINT := 0;
BEGIN
  FOR v_hold IN
    SELECT h.* FROM app.quota_holds AS h
    WHERE h.quota_id = p_quota_id AND h.period_start = p_period_start AND h.expires_at > p_at ORDER BY h.expires_at
  LOOP
    v_freed := v_freed + CASE p_limit_type
      WHEN 'tokens' THEN v_hold.tokens WHEN 'requests' THEN v_hold.requests WHEN 'input_tokens' THEN v_hold.input_tokens ELSE v_hold.output_tokens
    END;
    IF v_freed >= p_missing THEN
      RETURN v_hold.expires_at;
    END IF;
  END LOOP;
  RETURN NULL;
END
$$;

-- The counter of the current period as it would be after a rebuild, read without a lock and changing nothing.
CREATE FUNCTION app.read_quota_counter(quota app.usage_quotas, p_at TIMESTAMPTZ, p_change_number BIGINT) RETURNS app.quota_counters
LANGUAGE plpgsql STABLE AS
$$
DECLARE
  v_start TIMESTAMPTZ := app.quota_period_start(quota.period_type, quota.period_reset_day, quota.period_reset_hour, p_at);
  v_end TIMESTAMPTZ := app.quota_period_end(quota.period_type, quota.period_reset_day, quota.period_reset_hour, p_at);
  v_counter app.quota_counters;
  v_used app.quota_measures;
  v_expired app.quota_measures;
BEGIN
  SELECT * INTO v_counter FROM app.quota_counters AS c WHERE c.quota_id = quota.id AND c.period_start = v_start;
  IF NOT FOUND THEN
    v_counter.reserved_tokens := 0;
    v_counter.reserved_requests := 0;
    v_counter.reserved_input_tokens := 0;
    v_counter.reserved_output_tokens := 0;
  END IF;
  IF v_counter.change_number IS NULL OR v_counter.change_number < p_change_number THEN
    v_used := app.quota_counted(quota.id, v_start, v_end, app.quota_usage_hours(quota, v_start, v_end));
    v_counter.used_tokens := v_used.tokens;
    v_counter.used_requests := v_used.requests;
    v_counter.used_input_tokens := v_used.input_tokens;
    v_counter.used_output_tokens := v_used.output_tokens;
  END IF;
  IF v_counter.earliest_expiry <= p_at THEN
    SELECT COALESCE(sum(h.tokens), 0), COALESCE(sum(h.requests), 0), COALESCE(sum(h.input_tokens), 0), COALESCE(sum(h.output_tokens), 0)
    INTO v_expired
    FROM app.quota_holds AS h
    WHERE h.quota_id = quota.id AND h.period_start = v_start AND h.expires_at >= v_counter.earliest_expiry AND h.expires_at <= p_at;
    v_counter.reserved_tokens := v_counter.reserved_tokens - v_expired.tokens;
    v_counter.reserved_requests := v_counter.reserved_requests - v_expired.requests;
    v_counter.reserved_input_tokens := v_counter.reserved_input_tokens - v_expired.input_tokens;
    v_counter.reserved_output_tokens := v_counter.reserved_output_tokens - v_expired.output_tokens;
  END IF;
  v_counter.quota_id := quota.id;
  v_counter.period_start := v_start;
  v_counter.period_end := v_end;
  RETURN v_counter;
END
$$;

-- One quota's say, or NULL where all limits are below their warning threshold.
CREATE FUNCTION app.judge_quota(quota app.usage_quotas, counter app.quota_counters, p_amounts app.quota_measures, p_at TIMESTAMPTZ)
RETURNS app.quota_judgement
LANGUAGE plpgsql STABLE AS
$$
DECLARE
  v_limit RECORD;
  v_pct NUMERIC;
  v_projected BIGINT;
  v_retry_at TIMESTAMPTZ;
  found app.quota_judgement := ROW('allowed', NULL, NULL, '[]', '[]', NULL, NULL)::app.quota_judgement;
BEGIN
  FOR v_limit IN
    SELECT * FROM (VALUES
      ('tokens', quota.token_limit, counter.used_tokens, counter.reserved_tokens, p_amounts.tokens),
      ('requests', quota.request_limit, counter.used_requests, counter.reserved_requests, p_amounts.requests),
      ('input_tokens', quota.input_token_limit, counter.used_input_tokens, counter.reserved_input_tokens, p_amounts.input_tokens),
      ('output_tokens', quota.output_token_limit, counter.used_output_tokens, counter.reserved_output_tokens, p_amounts.output_tokens)
    ) AS l (limit_type, maximum, used, reserved, amount)
    WHERE l.maximum IS NOT NULL
      AND (l.used + l.reserved + l.amount)::NUMERIC * 100 >= l.maximum::NUMERIC * quota.warning_threshold_pct
  LOOP
    v_projected := v_limit.used + v_limit.reserved + v_limit.amount;
    v_pct := round(v_projected::NUMERIC * 100 / v_limit.maximum, 4);
    IF v_projected <= v_limit.maximum THEN
      found.warnings := found.warnings || jsonb_build_object(
        'quota_id', quota.id, 'quota_name', quota.name, 'limit_type', v_limit.limit_type, 'utilization_pct', v_pct,
        'threshold', CASE WHEN v_pct >= quota.critical_threshold_pct THEN quota.critical_threshold_pct ELSE quota.warning_threshold_pct END,
        'level', CASE WHEN v_pct >= quota.critical_threshold_pct THEN 'critical' ELSE 'warning' END
      );
      CONTINUE;
    END IF;
    found.violations := found.violations || jsonb_build_object(
      'quota_id', quota.id, 'quota_name', quota.name, 'limit_type', v_limit.limit_type, 'enforcement_mode', quota.enforcement_mode,
      'current_usage', v_limit.used + v_limit.reserved, 'limit', v_limit.maximum, 'projected_usage', v_projected, 'period_end', counter.period_end
    );
    CONTINUE WHEN quota.enforcement_mode = 'alert';
    found.reason := COALESCE(found.reason, format(
      'quota %s allows %s %s until %s UTC; %s are used or reserved and the request needs %s', quota.name, v_limit.maximum,
      replace(v_limit.limit_type, '_', ' '), to_char(counter.period_end AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'),
      v_limit.used + v_limit.reserved, v_limit.amount
    ));
    found.decision := CASE quota.enforcement_mode WHEN 'block' THEN 'blocked' ELSE 'throttled' END;
    IF quota.enforcement_mode = 'throttle' THEN
      -- What is reserved may free room before the period ends; what is used cannot; what is larger than the limit never fits.
      v_retry_at := CASE WHEN v_limit.amount > v_limit.maximum THEN 'infinity' ELSE counter.period_end END;
      IF v_limit.used + v_limit.amount <= v_limit.maximum THEN
        v_retry_at := least(v_retry_at, app.quota_room_at(quota.id, counter.period_start, v_limit.limit_type, v_projected - v_limit.maximum, p_at));
      END IF;
      found.retry_at := greatest(found.retry_at, v_retry_at);
    END IF;
  END LOOP;
  RETURN found;
END
$$;

-- All quotas that apply, in the order of their ids, and what they say together. With `p_lock` their counters stay locked.
CREATE FUNCTION app.judge_quotas(p_scope app.quota_scope, p_amounts app.quota_measures, p_at TIMESTAMPTZ, p_lock BOOLEAN) RETURNS app.quota_judgement
LANGUAGE plpgsql VOLATILE AS
$$
DECLARE
  v_number BIGINT := app.rollup_change_number();
  v_quota app.usage_quotas;
  v_counter app.quota_counters;
  v_one app.quota_judgement;
  v_all app.quota_judgement := ROW('allowed', NULL, NULL, '[]', '[]', '{}', '{}')::app.quota_judgement;
BEGIN
  FOR v_quota IN
    SELECT q.*
    FROM (VALUES
      ('organization', ''), ('team', p_scope.team_id::TEXT), ('project', p_scope.project_id::TEXT),
      ('user', p_scope.user_identifier), ('api_key', p_scope.api_key_id), ('feature', p_scope.feature)
    ) AS s (scope_type, scope_value)
    JOIN app.usage_quotas AS q ON q.scope_type = s.scope_type
      AND COALESCE(q.team_id::TEXT, q.project_id::TEXT, q.user_identifier, q.api_key_id, q.feature, '') = s.scope_value
    WHERE q.org_id = p_scope.org_id AND q.is_active
    ORDER BY q.id
  LOOP
    v_counter := CASE WHEN p_lock THEN app.lock_quota_counter(v_quota, p_at, v_number) ELSE app.read_quota_counter(v_quota, p_at, v_number) END;
    v_one := app.judge_quota(v_quota, v_counter, p_amounts, p_at);
    v_all.quota_ids := v_all.quota_ids || v_quota.id;
    v_all.period_starts := v_all.period_starts || v_counter.period_start;
    v_all.violations := v_all.violations || v_one.violations;
    v_all.warnings := v_all.warnings || v_one.warnings;
    v_all.retry_at := greatest(v_all.retry_at, v_one.retry_at);
    -- A refusal for good weighs more than one for a while.
    IF v_all.decision = 'allowed' OR (v_all.decision = 'throttled' AND v_one.decision = 'blocked') THEN
      v_all.decision := v_one.decision;
      v_all.reason := v_one.reason;
    END IF;
  END LOOP;
  IF v_all.quota_ids = '{}' AND NOT EXISTS (SELECT FROM app.organizations AS o WHERE o.id = p_scope.org_id) THEN
    RAISE EXCEPTION 'no organisation has the id %: they are in organizations', COALESCE(p_scope.org_id::TEXT, 'NULL') USING ERRCODE = 'no_data_found';
  END IF;
  IF v_all.decision = 'blocked' OR v_all.retry_at = 'infinity' THEN
    v_all.retry_at := NULL;
  END IF;
  RETURN v_all;
END
$$;
