-- Questions about quotas (specification 2.7). The functions find dbt's views when they run, so dbt may replace those at any time.

-- The moment as of which the models about quotas speak: now, or what quota_status_at asks for.
CREATE FUNCTION app.quota_moment() RETURNS TIMESTAMPTZ
LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT COALESCE(nullif(current_setting('tokentra.moment', true), '')::TIMESTAMPTZ, now()) $$;

CREATE FUNCTION app.require_quota_models() RETURNS VOID
LANGUAGE plpgsql STABLE AS
$$
BEGIN
  IF to_regclass('intermediate.int_quota_status') IS NULL THEN
    RAISE EXCEPTION 'usage of quotas has not been built yet: run `tokentra build`' USING ERRCODE = 'undefined_table';
  END IF;
END
$$;

-- The rows of quota_status as they would have been at `moment`: the quotas of that time, usage until then (as it is known
-- now). An error for a moment in the future, of which nothing is known.
CREATE FUNCTION app.quota_status_at(moment TIMESTAMPTZ) RETURNS SETOF JSONB
LANGUAGE plpgsql AS
$$
BEGIN
  IF moment IS NULL OR moment > now() THEN
    RAISE EXCEPTION 'quota_status_at(%): the moment must not be NULL or in the future', COALESCE(quote_literal(moment), 'NULL')
      USING ERRCODE = 'invalid_parameter_value';
  END IF;
  PERFORM app.require_quota_models();
  PERFORM set_config('tokentra.moment', to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00', true);
  RETURN QUERY SELECT to_jsonb(s) FROM marts.quota_status AS s;
  PERFORM set_config('tokentra.moment', '', true);
END
$$;

-- The specification's function, by the corrections: usage itself instead of stale counters (30), every scope (28), all four
-- limits (29), exactly on the limit is not exceeded, BIGINT (10). A limit that is not set has no utilization: NULL. A paused
-- quota has a status too. An id that no quota has is an error: an absent row would read as "no objection".
CREATE FUNCTION app.check_quota_status(p_quota_id UUID) RETURNS TABLE (
  quota_id UUID,
  quota_name TEXT,
  scope_type TEXT,
  current_tokens BIGINT,
  token_limit BIGINT,
  token_utilization_pct FLOAT,
  current_requests BIGINT,
  request_limit BIGINT,
  request_utilization_pct FLOAT,
  status TEXT,
  period_remaining_hours INTEGER
)
LANGUAGE plpgsql STABLE AS
$$
BEGIN
  PERFORM app.require_quota_models();
  RETURN QUERY
  SELECT
    s.quota_id, s.quota_name, s.scope_type, s.total_tokens, s.token_limit, s.token_utilization_pct, s.total_requests,
    s.request_limit, s.request_utilization_pct, s.status, floor(s.hours_remaining)::INTEGER
  FROM intermediate.int_quota_status AS s
  WHERE s.quota_id = p_quota_id;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'no quota has the id %: the quotas and their ids are in usage_quotas', COALESCE(p_quota_id::TEXT, 'NULL')
      USING ERRCODE = 'no_data_found';
  END IF;
END
$$;
