-- Quotas in operation (specification 8; docs/quotas.md, docs/decisions/0011): what usage corrected of counters is kept, single refusals
-- expire and leave their counts, readers see what was refused of their own organisation.

-- Whose event it is. Without it row-level security showed readers none, and quota_usage_history was closed to them.
ALTER TABLE app.quota_events ADD COLUMN org_id UUID;
UPDATE app.quota_events AS e SET org_id = v.org_id FROM app.usage_quota_versions AS v WHERE v.quota_id = e.quota_id AND v.version = 1;
COMMENT ON COLUMN app.quota_events.org_id IS 'The organisation of the quota; filled in where it is not given';
CREATE INDEX quota_events_at ON app.quota_events USING brin (at);

CREATE FUNCTION app.fill_quota_event_org() RETURNS TRIGGER
LANGUAGE plpgsql AS
$$
BEGIN
  NEW.org_id := (SELECT v.org_id FROM app.usage_quota_versions AS v WHERE v.quota_id = NEW.quota_id ORDER BY v.version DESC LIMIT 1);
  RETURN NEW;
END
$$;
CREATE TRIGGER fill_quota_event_org BEFORE INSERT ON app.quota_events
FOR EACH ROW WHEN (NEW.org_id IS NULL) EXECUTE FUNCTION app.fill_quota_event_org();

-- What is left of events that have expired: the history of a quota counts both.
CREATE TABLE app.quota_event_counts (
  quota_id UUID NOT NULL,
  period_start TIMESTAMPTZ NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('alert', 'throttle', 'block')),
  org_id UUID,
  events BIGINT NOT NULL CHECK (events > 0),
  PRIMARY KEY (quota_id, period_start, kind)
);
COMMENT ON TABLE app.quota_event_counts IS 'How many of quota_events have expired (retention), per quota, period and kind; those that have not are not among them';

-- What a recount changed of a counter, a row per measure that changed. Only ever added to, until it expires.
CREATE TABLE app.quota_corrections (
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  quota_id UUID NOT NULL,
  org_id UUID NOT NULL,
  period_start TIMESTAMPTZ NOT NULL,
  corrected_at TIMESTAMPTZ NOT NULL,
  measure TEXT NOT NULL CHECK (measure IN ('tokens', 'requests', 'input_tokens', 'output_tokens')),
  counted_before BIGINT NOT NULL,
  counted BIGINT NOT NULL,
  difference BIGINT NOT NULL GENERATED ALWAYS AS (counted - counted_before) STORED,
  in_usage BIGINT NOT NULL
);
CREATE INDEX quota_corrections_quota ON app.quota_corrections (quota_id, corrected_at);
CREATE INDEX quota_corrections_at ON app.quota_corrections USING brin (corrected_at);
COMMENT ON TABLE app.quota_corrections IS 'What usage corrected of quota_counters: by an evaluation, after a build, or as the first reservation after a build met it';
COMMENT ON COLUMN app.quota_corrections.counted IS 'Used since then: usage, and what was settled beside it';
COMMENT ON COLUMN app.quota_corrections.in_usage IS 'Of it, what the rollups hold';

-- As before (0009), and what it changed is kept. The first count of a counter corrects nothing.
CREATE OR REPLACE FUNCTION app.recount_quota(
  p_quota_id UUID, p_start TIMESTAMPTZ, p_end TIMESTAMPTZ, p_hours JSONB, p_change_number BIGINT, p_at TIMESTAMPTZ
) RETURNS app.quota_counters
LANGUAGE plpgsql AS
$$
DECLARE
  v_used app.quota_measures := app.quota_counted(p_quota_id, p_start, p_end, p_hours);
  v_before app.quota_counters;
  v_counter app.quota_counters;
BEGIN
  SELECT * INTO v_before FROM app.quota_counters AS c WHERE c.quota_id = p_quota_id AND c.period_start = p_start;
  UPDATE app.quota_counters AS c SET
    period_end = p_end, used_tokens = v_used.tokens, used_requests = v_used.requests, used_input_tokens = v_used.input_tokens, used_output_tokens = v_used.output_tokens,
    (usage_tokens, usage_requests, usage_input_tokens, usage_output_tokens) = (
      SELECT COALESCE(sum(b.tokens), 0), COALESCE(sum(b.requests), 0), COALESCE(sum(b.input_tokens), 0), COALESCE(sum(b.output_tokens), 0)
      FROM jsonb_to_recordset(p_hours -> 'buckets') AS b (tokens BIGINT, requests BIGINT, input_tokens BIGINT, output_tokens BIGINT)
    ),
    data_until = (p_hours ->> 'data_until')::TIMESTAMPTZ, change_number = p_change_number, rebuilt_at = p_at
  WHERE c.quota_id = p_quota_id AND c.period_start = p_start
  RETURNING * INTO v_counter;
  IF v_before.rebuilt_at IS NOT NULL THEN
    INSERT INTO app.quota_corrections (quota_id, org_id, period_start, corrected_at, measure, counted_before, counted, in_usage)
    SELECT p_quota_id, v_counter.org_id, p_start, p_at, m.measure, m.counted_before, m.counted, m.in_usage
    FROM (VALUES
      ('tokens', v_before.used_tokens, v_counter.used_tokens, v_counter.usage_tokens),
      ('requests', v_before.used_requests, v_counter.used_requests, v_counter.usage_requests),
      ('input_tokens', v_before.used_input_tokens, v_counter.used_input_tokens, v_counter.usage_input_tokens),
      ('output_tokens', v_before.used_output_tokens, v_counter.used_output_tokens, v_counter.usage_output_tokens)
    ) AS m (measure, counted_before, counted, in_usage)
    WHERE m.counted_before <> m.counted;
  END IF;
  RETURN v_counter;
END
$$;

-- Quotas whose counter of the current period is of an older build, or is not what a recount would make it. Locks nothing.
CREATE FUNCTION app.quotas_to_rebuild() RETURNS SETOF UUID
LANGUAGE sql STABLE AS
$$
  SELECT q.id
  FROM app.usage_quotas AS q
  CROSS JOIN LATERAL (
    SELECT app.quota_period_start(q.period_type, q.period_reset_day, q.period_reset_hour, app.quota_clock()) AS period_start,
      app.quota_period_end(q.period_type, q.period_reset_day, q.period_reset_hour, app.quota_clock()) AS period_end
  ) AS p
  JOIN app.quota_counters AS c ON c.quota_id = q.id AND c.period_start = p.period_start
  WHERE COALESCE(c.change_number < app.rollup_change_number(), true)
    OR app.quota_counted(q.id, p.period_start, p.period_end, app.quota_usage_hours(q, p.period_start, p.period_end))
      <> ROW(c.used_tokens, c.used_requests, c.used_input_tokens, c.used_output_tokens)::app.quota_measures
$$;

-- Give back what expired reservations held of one counter. How many they were.
CREATE FUNCTION app.expire_quota_holds(p_quota_id UUID, p_period_start TIMESTAMPTZ) RETURNS BIGINT
LANGUAGE plpgsql AS
$$
DECLARE
  v_at TIMESTAMPTZ;
  v_expired BIGINT;
BEGIN
  PERFORM FROM app.quota_counters AS c WHERE c.quota_id = p_quota_id AND c.period_start = p_period_start FOR UPDATE;
  v_at := app.quota_clock();
  SELECT count(*) INTO v_expired FROM app.quota_holds AS h
  WHERE h.quota_id = p_quota_id AND h.period_start = p_period_start AND h.expires_at <= v_at;
  PERFORM app.free_expired(p_quota_id, p_period_start, v_at);
  RETURN v_expired;
END
$$;

CREATE FUNCTION app.apply_quota_management_access() RETURNS VOID
LANGUAGE plpgsql AS
$$
BEGIN
  EXECUTE format('GRANT SELECT ON app.quota_event_counts, app.quota_corrections TO %I', app.access_role('reader'));
END
$$;

ALTER FUNCTION app.apply_access() RENAME TO apply_access_before_quota_management;
CREATE FUNCTION app.apply_access() RETURNS BOOLEAN
LANGUAGE plpgsql AS
$$
BEGIN
  IF NOT app.apply_access_before_quota_management() THEN
    RETURN false;
  END IF;
  PERFORM app.apply_quota_management_access();
  RETURN true;
END
$$;
