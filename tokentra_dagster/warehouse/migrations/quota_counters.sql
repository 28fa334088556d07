-- Counters of quotas (specification 8, corrections 28 to 31; docs/decisions/0011): what counts now against each limit. They are a
-- cache: usage and what was settled say what they should be, and `rebuild_quota_counters` makes them so.

-- The four things that a limit may be about (correction 29).
CREATE TYPE app.quota_measures AS (tokens BIGINT, requests BIGINT, input_tokens BIGINT, output_tokens BIGINT);

-- Pages keep room, so that an update finds place beside the row and touches no index.
CREATE TABLE app.quota_counters (
  quota_id UUID NOT NULL,
  period_start TIMESTAMPTZ NOT NULL,
  period_end TIMESTAMPTZ NOT NULL,
  org_id UUID NOT NULL,
  used_tokens BIGINT NOT NULL DEFAULT 0,
  used_requests BIGINT NOT NULL DEFAULT 0,
  used_input_tokens BIGINT NOT NULL DEFAULT 0,
  used_output_tokens BIGINT NOT NULL DEFAULT 0,
  reserved_tokens BIGINT NOT NULL DEFAULT 0,
  reserved_requests BIGINT NOT NULL DEFAULT 0,
  reserved_input_tokens BIGINT NOT NULL DEFAULT 0,
  reserved_output_tokens BIGINT NOT NULL DEFAULT 0,
  usage_tokens BIGINT NOT NULL DEFAULT 0,
  usage_requests BIGINT NOT NULL DEFAULT 0,
  usage_input_tokens BIGINT NOT NULL DEFAULT 0,
  usage_output_tokens BIGINT NOT NULL DEFAULT 0,
  data_until TIMESTAMPTZ,
  change_number BIGINT,
  rebuilt_at TIMESTAMPTZ,
  earliest_expiry TIMESTAMPTZ NOT NULL DEFAULT 'infinity',
  PRIMARY KEY (quota_id, period_start)
) WITH (fillfactor = 30);
COMMENT ON TABLE app.quota_counters IS 'Per quota and period: what counts against its limits. used: usage of the rollups and what was settled and is not in it yet; reserved: open reservations; usage: what the rollups said at rebuilt_at';
COMMENT ON COLUMN app.quota_counters.data_until IS 'How far usage reached when the counter was rebuilt; NULL: no source ever reported';
COMMENT ON COLUMN app.quota_counters.change_number IS 'The build of the rollups that the counter is of (app.rollup_change_number); NULL: to be rebuilt';
COMMENT ON COLUMN app.quota_counters.earliest_expiry IS 'No reservation held here expires before this';

-- What open reservations hold of each quota. Taken away when settled, released or expired.
CREATE TABLE app.quota_holds (
  quota_id UUID NOT NULL,
  period_start TIMESTAMPTZ NOT NULL,
  reservation_id UUID NOT NULL,
  org_id UUID NOT NULL,
  expires_at TIMESTAMPTZ NOT NULL,
  tokens BIGINT NOT NULL,
  requests BIGINT NOT NULL,
  input_tokens BIGINT NOT NULL,
  output_tokens BIGINT NOT NULL,
  PRIMARY KEY (reservation_id, quota_id)
);
CREATE INDEX quota_holds_expiry ON app.quota_holds (quota_id, period_start, expires_at);

-- What was settled, by the minute, so that it can be told from usage that holds it already.
CREATE TABLE app.quota_settled (
  quota_id UUID NOT NULL,
  minute TIMESTAMPTZ NOT NULL,
  org_id UUID NOT NULL,
  tokens BIGINT NOT NULL,
  requests BIGINT NOT NULL,
  input_tokens BIGINT NOT NULL,
  output_tokens BIGINT NOT NULL,
  PRIMARY KEY (quota_id, minute)
) WITH (fillfactor = 50);

CREATE INDEX usage_quotas_applicable ON app.usage_quotas (
  org_id, scope_type, (COALESCE(team_id::TEXT, project_id::TEXT, user_identifier, api_key_id, feature, ''))
) WHERE is_active;

-- A session of the owner may ask as of another time (tokentra.moment, as the models do); nobody else moves the clock.
CREATE FUNCTION app.quota_clock() RETURNS TIMESTAMPTZ
LANGUAGE sql VOLATILE AS
$$
  SELECT CASE
    WHEN nullif(current_setting('tokentra.moment', true), '') IS NOT NULL AND pg_has_role(session_user, current_user, 'MEMBER')
    THEN app.quota_moment()
    ELSE clock_timestamp()
  END
$$;

-- A number that grows with every build that changed what quotas count.
CREATE FUNCTION app.rollup_change_number() RETURNS BIGINT
LANGUAGE sql STABLE AS
$$
  SELECT COALESCE(sum(change_number), 0)::BIGINT FROM raw.model_progress
  WHERE model IN ('hourly_usage_rollup', 'hourly_usage_by_user', 'hourly_usage_by_api_key')
$$;

-- Usage of the quota in the period by the hour, and by the day where a source reports days only; with how far usage reaches. An
-- hour is final where every source covers it and none restates it any more. NULL where nothing was ever built.
CREATE FUNCTION app.quota_usage_hours(quota app.usage_quotas, p_start TIMESTAMPTZ, p_end TIMESTAMPTZ) RETURNS JSONB
LANGUAGE plpgsql STABLE SET plan_cache_mode = force_custom_plan AS
$$
DECLARE
  v_scope TEXT := COALESCE(quota.team_id::TEXT, quota.project_id::TEXT, quota.user_identifier, quota.api_key_id, quota.feature, quota.org_id::TEXT);
  v_data_until TIMESTAMPTZ;
  v_complete_until TIMESTAMPTZ;
  v_provisional TSTZMULTIRANGE;
  v_hours JSONB;
BEGIN
  IF to_regclass('intermediate.int_quota_status') IS NULL THEN
    RETURN NULL;
  END IF;
  SELECT f.data_until, f.complete_until, f.provisional_spans INTO v_data_until, v_complete_until, v_provisional
  FROM intermediate.int_usage_freshness AS f WHERE f.org_id = quota.org_id;
  WITH counted AS (
    SELECT
      s.counted_at, s.is_day_record, sum(s.total_tokens) AS tokens, sum(s.request_count) AS requests,
      sum(s.input_tokens) AS input_tokens, sum(s.output_tokens) AS output_tokens,
      bool_or(s.request_count IS NULL AND s.total_tokens > 0) AS is_partial
    FROM intermediate.int_usage_by_scope AS s
    WHERE s.org_id = quota.org_id AND s.scope_type = quota.scope_type AND s.scope_value = v_scope
      AND s.counted_at >= p_start AND s.counted_at < p_end
    GROUP BY s.counted_at, s.is_day_record
  ), days AS (
    SELECT c.*, bool_or(c.is_day_record) OVER (PARTITION BY date_trunc('day', c.counted_at, 'UTC')) AS by_day FROM counted AS c
  ), buckets AS (
    SELECT CASE WHEN d.by_day THEN date_trunc('day', d.counted_at, 'UTC') ELSE d.counted_at END AS starts, d.by_day,
      sum(d.tokens)::BIGINT AS tokens, COALESCE(sum(d.requests), 0)::BIGINT AS requests, sum(d.input_tokens)::BIGINT AS input_tokens,
      sum(d.output_tokens)::BIGINT AS output_tokens, bool_or(d.is_partial) AS is_partial
    FROM days AS d GROUP BY 1, 2
  )
  SELECT jsonb_agg(to_jsonb(b)) INTO v_hours FROM buckets AS b;
  RETURN jsonb_build_object('data_until', v_data_until, 'complete_until', v_complete_until, 'provisional', v_provisional,
    'buckets', COALESCE(v_hours, '[]'));
END
$$;

-- What counts, by usage and by what was settled. Where usage is final it is right. Before that usage and settlements are two
-- incomplete accounts of the same requests: the larger one of each hour counts, never their sum. What was settled after the moment
-- that usage reaches cannot be in it, so it is added. Requests that no source counts are those that were settled.
CREATE FUNCTION app.quota_counted(p_quota_id UUID, p_start TIMESTAMPTZ, p_end TIMESTAMPTZ, p_hours JSONB) RETURNS app.quota_measures
LANGUAGE sql STABLE AS
$$
  WITH usage AS (
    SELECT b.* FROM jsonb_to_recordset(p_hours -> 'buckets') AS b (
      starts TIMESTAMPTZ, by_day BOOLEAN, tokens BIGINT, requests BIGINT, input_tokens BIGINT, output_tokens BIGINT, is_partial BOOLEAN
    )
  ), freshness AS (
    SELECT COALESCE((p_hours ->> 'data_until')::TIMESTAMPTZ, '-infinity') AS data_until,
      COALESCE((p_hours ->> 'complete_until')::TIMESTAMPTZ, '-infinity') AS complete_until,
      COALESCE((p_hours ->> 'provisional')::TSTZMULTIRANGE, '{}') AS provisional
  ), settled AS (
    SELECT
      COALESCE(d.starts, date_trunc('hour', s.minute, 'UTC')) AS starts, d.starts IS NOT NULL AS by_day,
      s.minute + interval '1 minute' > f.data_until AS is_later, s.tokens, s.requests, s.input_tokens, s.output_tokens
    FROM app.quota_settled AS s CROSS JOIN freshness AS f
    LEFT JOIN usage AS d ON d.by_day AND d.starts = date_trunc('day', s.minute, 'UTC')
    WHERE s.quota_id = p_quota_id AND s.minute >= p_start AND s.minute < p_end
  ), both_accounts AS (
    SELECT u.starts, u.by_day, false AS is_later, true AS is_usage, u.tokens, u.requests, u.input_tokens, u.output_tokens, u.is_partial FROM usage AS u
    UNION ALL
    SELECT s.starts, s.by_day, s.is_later, false, s.tokens, s.requests, s.input_tokens, s.output_tokens, false FROM settled AS s
  ), buckets AS (
    SELECT
      a.starts, bool_or(a.is_partial) AS is_partial,
      tstzrange(a.starts, a.starts + CASE WHEN a.by_day THEN interval '24 hours' ELSE interval '1 hour' END) AS span,
      COALESCE(sum(a.tokens) FILTER (WHERE a.is_usage), 0) AS tokens,
      COALESCE(sum(a.requests) FILTER (WHERE a.is_usage), 0) AS requests,
      COALESCE(sum(a.input_tokens) FILTER (WHERE a.is_usage), 0) AS input_tokens,
      COALESCE(sum(a.output_tokens) FILTER (WHERE a.is_usage), 0) AS output_tokens,
      COALESCE(sum(a.tokens) FILTER (WHERE NOT a.is_usage AND NOT a.is_later), 0) AS settled_tokens,
      COALESCE(sum(a.requests) FILTER (WHERE NOT a.is_usage AND NOT a.is_later), 0) AS settled_requests,
      COALESCE(sum(a.input_tokens) FILTER (WHERE NOT a.is_usage AND NOT a.is_later), 0) AS settled_input_tokens,
      COALESCE(sum(a.output_tokens) FILTER (WHERE NOT a.is_usage AND NOT a.is_later), 0) AS settled_output_tokens,
      COALESCE(sum(a.tokens) FILTER (WHERE a.is_later), 0) AS later_tokens,
      COALESCE(sum(a.requests) FILTER (WHERE a.is_later), 0) AS later_requests,
      COALESCE(sum(a.input_tokens) FILTER (WHERE a.is_later), 0) AS later_input_tokens,
      COALESCE(sum(a.output_tokens) FILTER (WHERE a.is_later), 0) AS later_output_tokens
    FROM both_accounts AS a GROUP BY a.starts, a.by_day
  ), judged AS (
    SELECT b.*, upper(b.span) <= f.complete_until AND NOT b.span && f.provisional AS is_final FROM buckets AS b CROSS JOIN freshness AS f
  )
  SELECT ROW(
    COALESCE(sum(CASE WHEN j.is_final THEN j.tokens ELSE greatest(j.tokens, j.settled_tokens) + j.later_tokens END), 0),
    COALESCE(sum(CASE WHEN j.is_final AND NOT j.is_partial THEN j.requests ELSE greatest(j.requests, j.settled_requests) + j.later_requests END), 0),
    COALESCE(sum(CASE WHEN j.is_final THEN j.input_tokens ELSE greatest(j.input_tokens, j.settled_input_tokens) + j.later_input_tokens END), 0),
    COALESCE(sum(CASE WHEN j.is_final THEN j.output_tokens ELSE greatest(j.output_tokens, j.settled_output_tokens) + j.later_output_tokens END), 0)
  )::app.quota_measures
  FROM judged AS j
$$;

-- Make a locked counter what usage and settlements say. `p_hours` was read at `p_change_number` or later.
CREATE FUNCTION app.recount_quota(
  p_quota_id UUID, p_start TIMESTAMPTZ, p_end TIMESTAMPTZ, p_hours JSONB, p_change_number BIGINT, p_at TIMESTAMPTZ
) RETURNS app.quota_counters
LANGUAGE plpgsql AS
$$
DECLARE
  v_used app.quota_measures := app.quota_counted(p_quota_id, p_start, p_end, p_hours);
  v_counter app.quota_counters;
BEGIN
  UPDATE app.quota_counters AS c SET
    period_end = p_end, used_tokens = v_used.tokens, used_requests = v_used.requests, used_input_tokens = v_used.input_tokens, used_output_tokens = v_used.output_tokens,
    (usage_tokens, usage_requests, usage_input_tokens, usage_output_tokens) = (
      SELECT COALESCE(sum(b.tokens), 0), COALESCE(sum(b.requests), 0), COALESCE(sum(b.input_tokens), 0), COALESCE(sum(b.output_tokens), 0)
      FROM jsonb_to_recordset(p_hours -> 'buckets') AS b (tokens BIGINT, requests BIGINT, input_tokens BIGINT, output_tokens BIGINT)
    ),
    data_until = (p_hours ->> 'data_until')::TIMESTAMPTZ, change_number = p_change_number, rebuilt_at = p_at
  WHERE c.quota_id = p_quota_id AND c.period_start = p_start
  RETURNING * INTO v_counter;
  RETURN v_counter;
END
$$;

-- Give back what expired reservations held of one locked counter.
CREATE FUNCTION app.free_expired(p_quota_id UUID, p_period_start TIMESTAMPTZ, p_at TIMESTAMPTZ) RETURNS app.quota_counters
LANGUAGE sql VOLATILE AS
$$
  WITH expired AS (
    DELETE FROM app.quota_holds AS h
    USING app.quota_counters AS c
    WHERE c.quota_id = p_quota_id AND c.period_start = p_period_start AND h.quota_id = p_quota_id AND h.period_start = p_period_start
      AND h.expires_at >= c.earliest_expiry AND h.expires_at <= p_at
    RETURNING h.tokens, h.requests, h.input_tokens, h.output_tokens
  ), freed AS (
    SELECT COALESCE(sum(tokens), 0) AS tokens, COALESCE(sum(requests), 0) AS requests, COALESCE(sum(input_tokens), 0) AS input_tokens,
      COALESCE(sum(output_tokens), 0) AS output_tokens
    FROM expired
  )
  UPDATE app.quota_counters AS c SET
    reserved_tokens = c.reserved_tokens - f.tokens, reserved_requests = c.reserved_requests - f.requests,
    reserved_input_tokens = c.reserved_input_tokens - f.input_tokens, reserved_output_tokens = c.reserved_output_tokens - f.output_tokens,
    earliest_expiry = COALESCE(
      (SELECT min(h.expires_at) FROM app.quota_holds AS h WHERE h.quota_id = p_quota_id AND h.period_start = p_period_start AND h.expires_at > p_at),
      'infinity'
    )
  FROM freed AS f WHERE c.quota_id = p_quota_id AND c.period_start = p_period_start
  RETURNING c.*
$$;

-- The counter of the quota's current period: locked, made where it is missing, of the newest build, without what expired.
CREATE FUNCTION app.lock_quota_counter(quota app.usage_quotas, p_at TIMESTAMPTZ, p_change_number BIGINT) RETURNS app.quota_counters
LANGUAGE plpgsql AS
$$
DECLARE
  v_start TIMESTAMPTZ := app.quota_period_start(quota.period_type, quota.period_reset_day, quota.period_reset_hour, p_at);
  v_end TIMESTAMPTZ;
  v_counter app.quota_counters;
BEGIN
  SELECT * INTO v_counter FROM app.quota_counters AS c WHERE c.quota_id = quota.id AND c.period_start = v_start FOR UPDATE;
  IF NOT FOUND THEN
    v_end := app.quota_period_end(quota.period_type, quota.period_reset_day, quota.period_reset_hour, p_at);
    INSERT INTO app.quota_counters (quota_id, period_start, period_end, org_id) VALUES (quota.id, v_start, v_end, quota.org_id)
    ON CONFLICT DO NOTHING;
    SELECT * INTO v_counter FROM app.quota_counters AS c WHERE c.quota_id = quota.id AND c.period_start = v_start FOR UPDATE;
  END IF;
  -- Whoever waited for the lock may have read the number before the one who held it.
  IF v_counter.change_number IS NULL OR v_counter.change_number < p_change_number THEN
    v_end := app.quota_period_end(quota.period_type, quota.period_reset_day, quota.period_reset_hour, p_at);
    v_counter := app.recount_quota(quota.id, v_start, v_end, app.quota_usage_hours(quota, v_start, v_end), p_change_number, p_at);
  END IF;
  IF v_counter.earliest_expiry <= p_at THEN
    v_counter := app.free_expired(quota.id, v_start, p_at);
  END IF;
  RETURN v_counter;
END
$$;

-- Make the counters of the current periods (of one quota, or of all that have one) what usage says now, and say what changed, one
-- row per quota and measure. Usage is read before any counter is locked, and counters are locked in the order in which
-- reservations do. What ended more than two days ago is forgotten. An unknown id is an error.
CREATE FUNCTION app.rebuild_quota_counters(p_quota_id UUID DEFAULT NULL) RETURNS TABLE (
  quota_id UUID, quota_name TEXT, period_start TIMESTAMPTZ, measure TEXT, counted_before BIGINT, counted BIGINT, difference BIGINT, in_usage BIGINT
)
LANGUAGE plpgsql AS
$$
DECLARE
  v_at TIMESTAMPTZ := app.quota_clock();
  v_number BIGINT;
  v_quota app.usage_quotas;
  v_hours JSONB := '{}';
  v_start TIMESTAMPTZ;
  v_end TIMESTAMPTZ;
  v_before app.quota_counters;
  v_after app.quota_counters;
BEGIN
  IF p_quota_id IS NOT NULL AND NOT EXISTS (SELECT FROM app.usage_quotas AS q WHERE q.id = p_quota_id) THEN
    RAISE EXCEPTION 'no quota has the id %: the quotas and their ids are in usage_quotas', p_quota_id USING ERRCODE = 'no_data_found';
  END IF;
  -- One at a time, so that an older reading never overwrites a newer one.
  PERFORM pg_advisory_xact_lock(7265011);
  IF p_quota_id IS NULL THEN
    PERFORM app.forget_quota_counters(v_at - interval '2 days');
  END IF;
  v_number := app.rollup_change_number();
  FOR v_quota IN SELECT q.* FROM app.usage_quotas AS q WHERE (p_quota_id IS NULL OR q.id = p_quota_id) ORDER BY q.id LOOP
    v_start := app.quota_period_start(v_quota.period_type, v_quota.period_reset_day, v_quota.period_reset_hour, v_at);
    v_end := app.quota_period_end(v_quota.period_type, v_quota.period_reset_day, v_quota.period_reset_hour, v_at);
    CONTINUE WHEN p_quota_id IS NULL AND NOT EXISTS (SELECT FROM app.quota_counters AS c WHERE c.quota_id = v_quota.id AND c.period_start = v_start);
    v_hours := v_hours || jsonb_build_object(v_quota.id, jsonb_build_object('hours', app.quota_usage_hours(v_quota, v_start, v_end)));
  END LOOP;
  FOR v_quota IN SELECT q.* FROM app.usage_quotas AS q WHERE v_hours ? q.id::TEXT ORDER BY q.id LOOP
    v_start := app.quota_period_start(v_quota.period_type, v_quota.period_reset_day, v_quota.period_reset_hour, v_at);
    v_end := app.quota_period_end(v_quota.period_type, v_quota.period_reset_day, v_quota.period_reset_hour, v_at);
    INSERT INTO app.quota_counters (quota_id, period_start, period_end, org_id) VALUES (v_quota.id, v_start, v_end, v_quota.org_id)
    ON CONFLICT DO NOTHING;
    SELECT * INTO v_before FROM app.quota_counters AS c WHERE c.quota_id = v_quota.id AND c.period_start = v_start FOR UPDATE;
    v_after := app.recount_quota(v_quota.id, v_start, v_end, NULLIF(v_hours -> v_quota.id::TEXT -> 'hours', 'null'), v_number, v_at);
    IF v_after.earliest_expiry <= v_at THEN
      v_after := app.free_expired(v_quota.id, v_start, v_at);
    END IF;
    RETURN QUERY
    SELECT v_quota.id, v_quota.name, v_start, m.measure, m.before, m.after, m.after - m.before, m.usage
    FROM (VALUES
      ('tokens', v_before.used_tokens, v_after.used_tokens, v_after.usage_tokens),
      ('requests', v_before.used_requests, v_after.used_requests, v_after.usage_requests),
      ('input_tokens', v_before.used_input_tokens, v_after.used_input_tokens, v_after.usage_input_tokens),
      ('output_tokens', v_before.used_output_tokens, v_after.used_output_tokens, v_after.usage_output_tokens)
    ) AS m (measure, before, after, usage);
  END LOOP;
END
$$;

-- Take away what was over before `p_before`; a reservation lives a day at most, so nothing open is among it. Waits for nobody: what
-- somebody holds stays for the next time.
CREATE FUNCTION app.forget_quota_counters(p_before TIMESTAMPTZ) RETURNS VOID
LANGUAGE plpgsql AS
$$
BEGIN
  DELETE FROM app.quota_holds AS h USING (
    SELECT o.reservation_id, o.quota_id FROM app.quota_holds AS o WHERE o.expires_at < p_before AND NOT EXISTS (
      SELECT FROM app.quota_counters AS c WHERE c.quota_id = o.quota_id AND c.period_start = o.period_start AND c.period_end >= p_before
    ) FOR UPDATE OF o SKIP LOCKED
  ) AS over WHERE h.reservation_id = over.reservation_id AND h.quota_id = over.quota_id;
  DELETE FROM app.quota_settled AS s USING (
    SELECT o.quota_id, o.minute FROM app.quota_settled AS o WHERE NOT EXISTS (
      SELECT FROM app.quota_counters AS c WHERE c.quota_id = o.quota_id AND c.period_start <= o.minute AND c.period_end >= p_before
    ) FOR UPDATE OF o SKIP LOCKED
  ) AS over WHERE s.quota_id = over.quota_id AND s.minute = over.minute;
  DELETE FROM app.quota_reservations AS r USING (
    SELECT o.id FROM app.quota_reservations AS o WHERE o.created_at < p_before FOR UPDATE OF o SKIP LOCKED
  ) AS over WHERE r.id = over.id;
  DELETE FROM app.quota_counters AS c USING (
    SELECT o.quota_id, o.period_start FROM app.quota_counters AS o WHERE o.period_end < p_before FOR UPDATE OF o SKIP LOCKED
  ) AS over WHERE c.quota_id = over.quota_id AND c.period_start = over.period_start;
END
$$;

-- Another scope is another count, so what was reserved and settled for the old one goes; other periods are counted anew.
CREATE FUNCTION app.reset_quota_counters() RETURNS TRIGGER
LANGUAGE plpgsql AS
$$
BEGIN
  IF TG_OP = 'DELETE' OR (OLD.org_id, OLD.scope_type, OLD.team_id, OLD.project_id, OLD.user_identifier, OLD.api_key_id, OLD.feature)
    IS DISTINCT FROM (NEW.org_id, NEW.scope_type, NEW.team_id, NEW.project_id, NEW.user_identifier, NEW.api_key_id, NEW.feature) THEN
    DELETE FROM app.quota_counters AS c WHERE c.quota_id = OLD.id;
    DELETE FROM app.quota_holds AS h WHERE h.quota_id = OLD.id;
    DELETE FROM app.quota_settled AS s WHERE s.quota_id = OLD.id;
  ELSIF (OLD.period_type, OLD.period_reset_day, OLD.period_reset_hour) <> (NEW.period_type, NEW.period_reset_day, NEW.period_reset_hour) THEN
    UPDATE app.quota_counters AS c SET change_number = NULL WHERE c.quota_id = OLD.id;
  END IF;
  RETURN NULL;
END
$$;
CREATE TRIGGER reset_quota_counters AFTER UPDATE OR DELETE ON app.usage_quotas
FOR EACH ROW EXECUTE FUNCTION app.reset_quota_counters();
