-- What clients call about quotas (docs/quotas.md), and who may. They run with the owner's rights and look at who logged in.

CREATE FUNCTION app.check_quota_before_request(
  p_org_id UUID,
  p_team_id UUID DEFAULT NULL,
  p_project_id UUID DEFAULT NULL,
  p_feature TEXT DEFAULT NULL,
  p_api_key_id TEXT DEFAULT NULL,
  p_user_identifier TEXT DEFAULT NULL,
  p_estimated_tokens BIGINT DEFAULT NULL,
  p_estimated_input_tokens BIGINT DEFAULT NULL,
  p_estimated_output_tokens BIGINT DEFAULT NULL,
  p_requests BIGINT DEFAULT 1
) RETURNS TABLE (
  allowed BOOLEAN, decision TEXT, reason TEXT, retry_at TIMESTAMPTZ, retry_after INTEGER, violations JSONB, warnings JSONB, applicable_quotas UUID[]
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$
DECLARE
  v_at TIMESTAMPTZ := app.quota_clock();
  said app.quota_judgement;
BEGIN
  PERFORM app.require_quota_access(p_org_id, false);
  said := app.judge_quotas(
    ROW(p_org_id, p_team_id, p_project_id, p_user_identifier, p_api_key_id, p_feature)::app.quota_scope,
    app.quota_measures_of(p_estimated_tokens, p_estimated_input_tokens, p_estimated_output_tokens, p_requests), v_at, false
  );
  RETURN QUERY SELECT said.decision = 'allowed', said.decision, said.reason, said.retry_at,
    app.whole_seconds(said.retry_at - v_at), said.violations, said.warnings, said.quota_ids;
END
$$;

-- Correction 31: all counters that apply are locked, in one order for everybody, then judged, then raised together or not at all.
CREATE FUNCTION app.reserve_quota(
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
DECLARE
  v_at TIMESTAMPTZ := app.quota_clock();
  v_amounts app.quota_measures := app.quota_measures_of(p_estimated_tokens, p_estimated_input_tokens, p_estimated_output_tokens, p_requests);
  v_expires_at TIMESTAMPTZ;
  v_id UUID := gen_random_uuid();
  v_known app.quota_reservations;
  said app.quota_judgement;
BEGIN
  PERFORM app.require_quota_access(p_org_id, true);
  IF p_expires_after IS NULL OR p_expires_after NOT BETWEEN 1 AND 86400 THEN
    RAISE EXCEPTION 'a reservation that expires after % seconds is not possible: use 1 to 86400', COALESCE(p_expires_after::TEXT, 'NULL')
      USING ERRCODE = 'invalid_parameter_value';
  END IF;
  v_expires_at := v_at + make_interval(secs => p_expires_after);
  -- Who comes second with a key waits here until the first has committed.
  IF p_idempotency_key IS NOT NULL THEN
    INSERT INTO app.quota_reservations (id, org_id, idempotency_key, estimate, created_at, expires_at)
    VALUES (v_id, p_org_id, p_idempotency_key, v_amounts, v_at, v_expires_at) ON CONFLICT (org_id, idempotency_key) DO NOTHING;
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
  said := app.judge_quotas(
    ROW(p_org_id, p_team_id, p_project_id, p_user_identifier, p_api_key_id, p_feature)::app.quota_scope, v_amounts, v_at, true
  );
  IF said.decision <> 'allowed' THEN
    IF p_idempotency_key IS NOT NULL THEN
      DELETE FROM app.quota_reservations AS r WHERE r.id = v_id;
    END IF;
    INSERT INTO app.quota_events (quota_id, period_start, kind, at, details)
    SELECT DISTINCT ON (a.quota_id) a.quota_id, a.period_start, v.violation ->> 'enforcement_mode', v_at, v.violation - 'quota_id' - 'quota_name'
    FROM unnest(said.quota_ids, said.period_starts) AS a (quota_id, period_start)
    JOIN jsonb_array_elements(said.violations) AS v (violation) ON (v.violation ->> 'quota_id')::UUID = a.quota_id
    WHERE v.violation ->> 'enforcement_mode' <> 'alert';
    RETURN QUERY SELECT false, said.decision, said.reason, said.retry_at, app.whole_seconds(said.retry_at - v_at),
      said.violations, said.warnings, said.quota_ids, NULL::UUID, NULL::TIMESTAMPTZ;
    RETURN;
  END IF;
  IF p_idempotency_key IS NULL THEN
    INSERT INTO app.quota_reservations (id, org_id, estimate, quota_ids, period_starts, violations, warnings, created_at, expires_at)
    VALUES (v_id, p_org_id, v_amounts, said.quota_ids, said.period_starts, said.violations, said.warnings, v_at, v_expires_at);
  ELSE
    UPDATE app.quota_reservations AS r
    SET quota_ids = said.quota_ids, period_starts = said.period_starts, violations = said.violations, warnings = said.warnings
    WHERE r.id = v_id;
  END IF;
  INSERT INTO app.quota_holds (quota_id, period_start, reservation_id, org_id, expires_at, tokens, requests, input_tokens, output_tokens)
  SELECT a.quota_id, a.period_start, v_id, p_org_id, v_expires_at, v_amounts.tokens, v_amounts.requests, v_amounts.input_tokens, v_amounts.output_tokens
  FROM unnest(said.quota_ids, said.period_starts) AS a (quota_id, period_start);
  UPDATE app.quota_counters AS c SET
    reserved_tokens = c.reserved_tokens + v_amounts.tokens, reserved_requests = c.reserved_requests + v_amounts.requests,
    reserved_input_tokens = c.reserved_input_tokens + v_amounts.input_tokens, reserved_output_tokens = c.reserved_output_tokens + v_amounts.output_tokens,
    earliest_expiry = least(c.earliest_expiry, v_expires_at)
  FROM unnest(said.quota_ids, said.period_starts) AS a (quota_id, period_start)
  WHERE c.quota_id = a.quota_id AND c.period_start = a.period_start;
  RETURN QUERY SELECT true, said.decision, said.reason, said.retry_at, NULL::INTEGER, said.violations, said.warnings, said.quota_ids, v_id, v_expires_at;
END
$$;

-- Close a reservation: what it held is given back, and `p_actual` (NULL: nothing) is counted. Once only; the answer says whether now.
CREATE FUNCTION app.close_reservation(p_id UUID, p_state TEXT, p_actual app.quota_measures, p_at TIMESTAMPTZ)
RETURNS TABLE (reservation_id UUID, state TEXT, changed BOOLEAN, was_expired BOOLEAN)
LANGUAGE plpgsql VOLATILE AS
$$
DECLARE
  v_known app.quota_reservations;
  v_counter app.quota_counters;
  v_hold app.quota_holds;
BEGIN
  SELECT * INTO v_known FROM app.quota_reservations AS r WHERE r.id = p_id FOR UPDATE;
  -- What was released and then happened all the same counts.
  IF v_known.state = 'settled' OR v_known.state = p_state THEN
    RETURN QUERY SELECT p_id, v_known.state, false, v_known.expires_at <= v_known.closed_at;
    RETURN;
  END IF;
  FOR i IN 1 .. COALESCE(cardinality(v_known.quota_ids), 0) LOOP
    SELECT * INTO v_counter FROM app.quota_counters AS c
    WHERE c.quota_id = v_known.quota_ids[i] AND c.period_start = v_known.period_starts[i] FOR UPDATE;
    CONTINUE WHEN NOT FOUND;
    DELETE FROM app.quota_holds AS h WHERE h.reservation_id = p_id AND h.quota_id = v_known.quota_ids[i] RETURNING * INTO v_hold;
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
  UPDATE app.quota_reservations AS r SET state = p_state, actual = p_actual, closed_at = p_at WHERE r.id = p_id;
  RETURN QUERY SELECT p_id, p_state, true, v_known.expires_at <= p_at;
END
$$;

-- The reservation, if whoever logged in may close it. Somebody else's is as unknown as one that never was.
CREATE FUNCTION app.require_reservation(p_id UUID) RETURNS app.quota_reservations
LANGUAGE plpgsql STABLE AS
$$
DECLARE
  v_known app.quota_reservations;
BEGIN
  SELECT * INTO v_known FROM app.quota_reservations AS r WHERE r.id = p_id;
  IF v_known.id IS NOT NULL AND app.has_quota_access(v_known.org_id, true) THEN
    RETURN v_known;
  END IF;
  RAISE EXCEPTION 'no reservation has the id %: it was never made, or ended more than two days ago', COALESCE(p_id::TEXT, 'NULL')
    USING ERRCODE = 'no_data_found';
END
$$;

CREATE FUNCTION app.settle_quota(
  p_reservation_id UUID,
  p_tokens BIGINT DEFAULT NULL,
  p_input_tokens BIGINT DEFAULT NULL,
  p_output_tokens BIGINT DEFAULT NULL,
  p_requests BIGINT DEFAULT NULL
) RETURNS TABLE (reservation_id UUID, state TEXT, changed BOOLEAN, was_expired BOOLEAN)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$
DECLARE
  v_known app.quota_reservations := app.require_reservation(p_reservation_id);
BEGIN
  RETURN QUERY SELECT * FROM app.close_reservation(
    p_reservation_id, 'settled',
    app.quota_measures_of(p_tokens, p_input_tokens, p_output_tokens, COALESCE(p_requests, (v_known.estimate).requests)), app.quota_clock()
  );
END
$$;

CREATE FUNCTION app.release_quota(p_reservation_id UUID) RETURNS TABLE (reservation_id UUID, state TEXT, changed BOOLEAN, was_expired BOOLEAN)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$
BEGIN
  PERFORM app.require_reservation(p_reservation_id);
  RETURN QUERY SELECT * FROM app.close_reservation(p_reservation_id, 'released', NULL, app.quota_clock());
END
$$;

-- The rights as they were, and who may call what is above. Each call looks at who logged in.
CREATE FUNCTION app.apply_quota_access() RETURNS VOID
LANGUAGE plpgsql AS
$$
BEGIN
  EXECUTE format(
    'GRANT EXECUTE ON FUNCTION app.check_quota_before_request, app.reserve_quota, app.settle_quota, app.release_quota TO %I', app.access_role('reader')
  );
  EXECUTE format('GRANT SELECT ON app.quota_counters TO %I', app.access_role('reader'));
END
$$;

ALTER FUNCTION app.apply_access() RENAME TO apply_access_to_relations;
CREATE FUNCTION app.apply_access() RETURNS BOOLEAN
LANGUAGE plpgsql AS
$$
BEGIN
  IF NOT app.apply_access_to_relations() THEN
    RETURN false;
  END IF;
  PERFORM app.apply_quota_access();
  RETURN true;
END
$$;
