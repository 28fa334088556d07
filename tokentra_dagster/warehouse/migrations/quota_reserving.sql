-- Reserving and settling in fewer statements, with the counter locked only while it is raised (docs/decisions/0011, "Far from the limits").

-- The largest amount that is below the warning threshold of a limit; without a limit, the largest there is.
CREATE FUNCTION app.below_warning(p_limit BIGINT, p_warning_threshold_pct INTEGER) RETURNS BIGINT
LANGUAGE sql IMMUTABLE AS
$$ SELECT COALESCE(ceil(p_limit::NUMERIC * p_warning_threshold_pct / 100)::BIGINT - 1, 9223372036854775807) $$;

-- Correction 31. Far from every limit there is nothing to judge: the reservation is written down, then each counter is raised, in the
-- order of their ids, if it is still far. A limit without room refuses as it is read. Otherwise, and where a counter is to be made or
-- rebuilt, or something in it has expired, all counters that apply are locked, in the same order, then judged, then raised together or
-- not at all.
CREATE OR REPLACE FUNCTION app.reserve_quota(
  p_org_id UUID,
  p_team_id UUID DEFAULT NULL,
  p_project_id UUID DEFAULT NULL,
  p_feature TEXT DEFAULT NULL,
  p_api_key_id TEXT DEFAULT NULL,
  p_user_identifier TEXT DEFAULT NULL,
  p_estimated_tokens BIGINT DEFAULT NULL,
  p_estimated_input_tokens BIGINT DEFAULT NULL,
  p_estimated_output_tokens BIGINT DEFAULT NULL,
  p_requests BIGINT DEFAULT 1,
  p_expires_after INTEGER DEFAULT 300,
  p_idempotency_key TEXT DEFAULT NULL
) RETURNS TABLE (
  allowed BOOLEAN, decision TEXT, reason TEXT, retry_at TIMESTAMPTZ, retry_after INTEGER, violations JSONB, warnings JSONB, applicable_quotas UUID[],
  reservation_id UUID, expires_at TIMESTAMPTZ
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$
#variable_conflict use_column
DECLARE
  v_at TIMESTAMPTZ := app.quota_clock();
  v_amounts app.quota_measures := app.quota_measures_of(p_estimated_tokens, p_estimated_input_tokens, p_estimated_output_tokens, p_requests);
  v_tokens BIGINT := v_amounts.tokens;
  v_requests BIGINT := v_amounts.requests;
  v_input_tokens BIGINT := v_amounts.input_tokens;
  v_output_tokens BIGINT := v_amounts.output_tokens;
  v_number BIGINT := app.rollup_change_number();
  v_expires_at TIMESTAMPTZ;
  v_id UUID := gen_random_uuid();
  v_known app.quota_reservations;
  v_is_far BOOLEAN;
  v_is_full BOOLEAN;
  v_quotas UUID[];
  v_starts TIMESTAMPTZ[];
  v_most BIGINT[];
  v_taken INTEGER := 0;
  v_scope app.quota_scope;
  said app.quota_judgement;
BEGIN
  IF NOT app.has_quota_access(p_org_id, true) THEN
    PERFORM app.require_quota_access(p_org_id, true);
  END IF;
  IF p_expires_after IS NULL OR p_expires_after NOT BETWEEN 1 AND 86400 THEN
    RAISE EXCEPTION 'a reservation that expires after % seconds is not possible: use 1 to 86400', COALESCE(p_expires_after::TEXT, 'NULL')
      USING ERRCODE = 'invalid_parameter_value';
  END IF;
  v_expires_at := v_at + make_interval(secs => p_expires_after);
  SELECT array_agg(f.quota_id), array_agg(f.period_start), array_agg(f.most), COALESCE(bool_and(f.is_far), false), COALESCE(bool_or(f.is_full), false)
  INTO v_quotas, v_starts, v_most, v_is_far, v_is_full
  FROM (
    SELECT q.id AS quota_id, c.period_start, l.most,
      COALESCE(
        c.used_tokens + c.reserved_tokens + v_tokens <= l.most[1] AND c.used_requests + c.reserved_requests + v_requests <= l.most[2]
        AND c.used_input_tokens + c.reserved_input_tokens + v_input_tokens <= l.most[3]
        AND c.used_output_tokens + c.reserved_output_tokens + v_output_tokens <= l.most[4], false
      ) AS is_far,
      q.enforcement_mode <> 'alert' AND (
        c.used_tokens + c.reserved_tokens + v_tokens > q.token_limit OR c.used_requests + c.reserved_requests + v_requests > q.request_limit
        OR c.used_input_tokens + c.reserved_input_tokens + v_input_tokens > q.input_token_limit
        OR c.used_output_tokens + c.reserved_output_tokens + v_output_tokens > q.output_token_limit
      ) AS is_full
    FROM (VALUES
      ('organization', ''), ('team', p_team_id::TEXT), ('project', p_project_id::TEXT),
      ('user', p_user_identifier), ('api_key', p_api_key_id), ('feature', p_feature)
    ) AS s (scope_type, scope_value)
    JOIN app.usage_quotas AS q ON q.scope_type = s.scope_type
      AND COALESCE(q.team_id::TEXT, q.project_id::TEXT, q.user_identifier, q.api_key_id, q.feature, '') = s.scope_value
    CROSS JOIN LATERAL (
      SELECT ARRAY[
        app.below_warning(q.token_limit, q.warning_threshold_pct), app.below_warning(q.request_limit, q.warning_threshold_pct),
        app.below_warning(q.input_token_limit, q.warning_threshold_pct), app.below_warning(q.output_token_limit, q.warning_threshold_pct)
      ] AS most
    ) AS l
    -- A counter of periods that the quota no longer has is of no build (trigger reset_quota_counters).
    LEFT JOIN app.quota_counters AS c ON c.quota_id = q.id AND c.period_start <= v_at AND c.period_end > v_at
      AND c.change_number >= v_number AND c.earliest_expiry > v_at
    WHERE q.org_id = p_org_id AND q.is_active
    ORDER BY q.id
  ) AS f;
  -- Who comes second with a key waits here until the first has committed. (Without a key, ON CONFLICT would cost as much as all else.)
  IF p_idempotency_key IS NULL AND v_is_far THEN
    INSERT INTO app.quota_reservations (id, org_id, estimate, quota_ids, period_starts, created_at, expires_at)
    VALUES (v_id, p_org_id, v_amounts, v_quotas, v_starts, v_at, v_expires_at);
  ELSIF p_idempotency_key IS NOT NULL THEN
    INSERT INTO app.quota_reservations (id, org_id, idempotency_key, estimate, quota_ids, period_starts, created_at, expires_at)
    VALUES (
      v_id, p_org_id, p_idempotency_key, v_amounts, CASE WHEN v_is_far THEN v_quotas ELSE '{}' END,
      CASE WHEN v_is_far THEN v_starts ELSE '{}' END, v_at, v_expires_at
    ) ON CONFLICT (org_id, idempotency_key) DO NOTHING;
    IF NOT FOUND THEN
      SELECT * INTO v_known FROM app.quota_reservations AS r WHERE r.org_id = p_org_id AND r.idempotency_key = p_idempotency_key;
      IF v_known.estimate <> v_amounts THEN
        RAISE EXCEPTION 'the idempotency key % was used for another estimate, %: use a new key for a new request', quote_literal(p_idempotency_key), v_known.estimate
          USING ERRCODE = 'invalid_parameter_value';
      END IF;
      RETURN QUERY SELECT true, 'allowed', NULL::TEXT, NULL::TIMESTAMPTZ, NULL::INTEGER, v_known.violations, v_known.warnings, v_known.quota_ids,
        v_known.id, v_known.expires_at;
      RETURN;
    END IF;
  END IF;
  IF v_is_far THEN
    INSERT INTO app.quota_holds (quota_id, period_start, reservation_id, org_id, expires_at, tokens, requests, input_tokens, output_tokens)
    SELECT a.quota_id, a.period_start, v_id, p_org_id, v_expires_at, v_tokens, v_requests, v_input_tokens, v_output_tokens
    FROM unnest(v_quotas, v_starts) AS a (quota_id, period_start);
    FOR i IN 1 .. cardinality(v_quotas) LOOP
      UPDATE app.quota_counters AS c SET
        reserved_tokens = c.reserved_tokens + v_tokens, reserved_requests = c.reserved_requests + v_requests,
        reserved_input_tokens = c.reserved_input_tokens + v_input_tokens, reserved_output_tokens = c.reserved_output_tokens + v_output_tokens,
        earliest_expiry = least(c.earliest_expiry, v_expires_at)
      WHERE c.quota_id = v_quotas[i] AND c.period_start = v_starts[i] AND c.change_number >= v_number AND c.earliest_expiry > v_at
        AND c.used_tokens + c.reserved_tokens + v_tokens <= v_most[i][1] AND c.used_requests + c.reserved_requests + v_requests <= v_most[i][2]
        AND c.used_input_tokens + c.reserved_input_tokens + v_input_tokens <= v_most[i][3]
        AND c.used_output_tokens + c.reserved_output_tokens + v_output_tokens <= v_most[i][4];
      EXIT WHEN NOT FOUND;
      v_taken := i;
    END LOOP;
    IF v_taken = cardinality(v_quotas) THEN
      allowed := true;
      decision := 'allowed';
      violations := '[]';
      warnings := '[]';
      applicable_quotas := v_quotas;
      reservation_id := v_id;
      expires_at := v_expires_at;
      RETURN NEXT;
      RETURN;
    END IF;
    -- Somebody was quicker.
    UPDATE app.quota_counters AS c SET
      reserved_tokens = c.reserved_tokens - v_tokens, reserved_requests = c.reserved_requests - v_requests,
      reserved_input_tokens = c.reserved_input_tokens - v_input_tokens, reserved_output_tokens = c.reserved_output_tokens - v_output_tokens
    FROM unnest(v_quotas[:v_taken], v_starts[:v_taken]) AS a (quota_id, period_start)
    WHERE c.quota_id = a.quota_id AND c.period_start = a.period_start;
    DELETE FROM app.quota_holds AS h WHERE h.reservation_id = v_id;
  END IF;
  -- A limit that has no room refuses as it is read: nobody waits for a lock to hear no.
  v_scope := ROW(p_org_id, p_team_id, p_project_id, p_user_identifier, p_api_key_id, p_feature)::app.quota_scope;
  said := app.judge_quotas(v_scope, v_amounts, v_at, NOT v_is_full);
  IF v_is_full AND said.decision = 'allowed' THEN
    said := app.judge_quotas(v_scope, v_amounts, v_at, true);
  END IF;
  IF said.decision <> 'allowed' THEN
    IF v_is_far OR p_idempotency_key IS NOT NULL THEN
      DELETE FROM app.quota_reservations AS r WHERE r.id = v_id;
    END IF;
    INSERT INTO app.quota_events (org_id, quota_id, period_start, kind, at, details)
    SELECT DISTINCT ON (a.quota_id) p_org_id, a.quota_id, a.period_start, v.violation ->> 'enforcement_mode', v_at,
      v.violation - 'quota_id' - 'quota_name'
    FROM unnest(said.quota_ids, said.period_starts) AS a (quota_id, period_start)
    JOIN jsonb_array_elements(said.violations) AS v (violation) ON (v.violation ->> 'quota_id')::UUID = a.quota_id
    WHERE v.violation ->> 'enforcement_mode' <> 'alert';
    RETURN QUERY SELECT false, said.decision, said.reason, said.retry_at, app.whole_seconds(said.retry_at - v_at),
      said.violations, said.warnings, said.quota_ids, NULL::UUID, NULL::TIMESTAMPTZ;
    RETURN;
  END IF;
  IF v_is_far OR p_idempotency_key IS NOT NULL THEN
    UPDATE app.quota_reservations AS r
    SET quota_ids = said.quota_ids, period_starts = said.period_starts, violations = said.violations, warnings = said.warnings
    WHERE r.id = v_id;
  ELSE
    INSERT INTO app.quota_reservations (id, org_id, estimate, quota_ids, period_starts, violations, warnings, created_at, expires_at)
    VALUES (v_id, p_org_id, v_amounts, said.quota_ids, said.period_starts, said.violations, said.warnings, v_at, v_expires_at);
  END IF;
  INSERT INTO app.quota_holds (quota_id, period_start, reservation_id, org_id, expires_at, tokens, requests, input_tokens, output_tokens)
  SELECT a.quota_id, a.period_start, v_id, p_org_id, v_expires_at, v_tokens, v_requests, v_input_tokens, v_output_tokens
  FROM unnest(said.quota_ids, said.period_starts) AS a (quota_id, period_start);
  UPDATE app.quota_counters AS c SET
    reserved_tokens = c.reserved_tokens + v_tokens, reserved_requests = c.reserved_requests + v_requests,
    reserved_input_tokens = c.reserved_input_tokens + v_input_tokens, reserved_output_tokens = c.reserved_output_tokens + v_output_tokens,
    earliest_expiry = least(c.earliest_expiry, v_expires_at)
  FROM unnest(said.quota_ids, said.period_starts) AS a (quota_id, period_start)
  WHERE c.quota_id = a.quota_id AND c.period_start = a.period_start;
  RETURN QUERY SELECT true, said.decision, said.reason, said.retry_at, NULL::INTEGER, said.violations, said.warnings, said.quota_ids, v_id, v_expires_at;
END
$$;

-- Close a reservation: what it held is given back, and `p_actual` (NULL: nothing) is counted. Once only; the answer says whether now.
CREATE OR REPLACE FUNCTION app.close_reservation(p_id UUID, p_state TEXT, p_actual app.quota_measures, p_at TIMESTAMPTZ)
RETURNS TABLE (reservation_id UUID, state TEXT, changed BOOLEAN, was_expired BOOLEAN)
LANGUAGE plpgsql VOLATILE AS
$$
#variable_conflict use_column
DECLARE
  v_known app.quota_reservations;
  v_counter app.quota_counters;
  v_hold app.quota_holds;
BEGIN
  -- What was released and then happened all the same counts.
  UPDATE app.quota_reservations AS r SET state = p_state, actual = p_actual, closed_at = p_at
  WHERE r.id = p_id AND r.state <> 'settled' AND r.state <> p_state
  RETURNING r.* INTO v_known;
  IF NOT FOUND THEN
    RETURN QUERY SELECT r.id, r.state, false, r.expires_at <= r.closed_at FROM app.quota_reservations AS r WHERE r.id = p_id;
    RETURN;
  END IF;
  FOR i IN 1 .. COALESCE(cardinality(v_known.quota_ids), 0) LOOP
    SELECT * INTO v_counter FROM app.quota_counters AS c
    WHERE c.quota_id = v_known.quota_ids[i] AND c.period_start = v_known.period_starts[i] FOR UPDATE;
    CONTINUE WHEN NOT FOUND;
    DELETE FROM app.quota_holds AS h WHERE h.reservation_id = p_id AND h.quota_id = v_known.quota_ids[i] RETURNING h.* INTO v_hold;
    UPDATE app.quota_counters AS c SET
      reserved_tokens = c.reserved_tokens - COALESCE(v_hold.tokens, 0), reserved_requests = c.reserved_requests - COALESCE(v_hold.requests, 0),
      reserved_input_tokens = c.reserved_input_tokens - COALESCE(v_hold.input_tokens, 0),
      reserved_output_tokens = c.reserved_output_tokens - COALESCE(v_hold.output_tokens, 0),
      used_tokens = c.used_tokens + COALESCE(p_actual.tokens, 0), used_requests = c.used_requests + COALESCE(p_actual.requests, 0),
      used_input_tokens = c.used_input_tokens + COALESCE(p_actual.input_tokens, 0),
      used_output_tokens = c.used_output_tokens + COALESCE(p_actual.output_tokens, 0)
    WHERE c.quota_id = v_known.quota_ids[i] AND c.period_start = v_known.period_starts[i];
    IF p_state = 'settled' THEN
      INSERT INTO app.quota_settled AS s (quota_id, minute, org_id, tokens, requests, input_tokens, output_tokens)
      VALUES (v_known.quota_ids[i], date_trunc('minute', least(p_at, v_counter.period_end - interval '1 microsecond'), 'UTC'), v_known.org_id,
        p_actual.tokens, p_actual.requests, p_actual.input_tokens, p_actual.output_tokens)
      ON CONFLICT (quota_id, minute) DO UPDATE SET
        tokens = s.tokens + excluded.tokens, requests = s.requests + excluded.requests,
        input_tokens = s.input_tokens + excluded.input_tokens, output_tokens = s.output_tokens + excluded.output_tokens;
    END IF;
  END LOOP;
  reservation_id := p_id;
  state := p_state;
  changed := true;
  was_expired := v_known.expires_at <= p_at;
  RETURN NEXT;
END
$$;
