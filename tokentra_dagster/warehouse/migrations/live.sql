-- The last minutes of usage, live (specification section 10, correction 34, docs/decisions/0019): from the events themselves, so
-- that it makes no difference which of them are records already.

-- What an event cost, priced when it is stored and as its record is priced when it is flushed.
ALTER TABLE raw.usage_events
ADD COLUMN estimated_cost NUMERIC(24, 12),
ADD COLUMN cost_basis TEXT CHECK (cost_basis IN ('actual', 'estimate', 'unpriced'));
COMMENT ON COLUMN raw.usage_events.estimated_cost IS 'In currency, without rounding; NULL: the price is unknown';
COMMENT ON COLUMN raw.usage_events.cost_basis IS 'Whose figure it is; NULL: stored before events were priced';

-- The newest block ranges of a BRIN index are read whole until vacuum has summarized them, and the last minutes lie just there.
CREATE INDEX usage_events_moment ON raw.usage_events (org_id, occurred_at);
DROP INDEX raw.usage_events_occurred;

-- Sums of the events of an hour that are records by now, written by the transaction that makes them records. With the events that
-- still wait they are the hour, and 24 of them the day, without reading a day of events every two seconds.
CREATE TABLE raw.usage_event_hours (
  org_id UUID NOT NULL,
  hour TIMESTAMPTZ NOT NULL,
  provider TEXT NOT NULL,
  currency TEXT NOT NULL,
  requests BIGINT NOT NULL,
  total_tokens BIGINT NOT NULL,
  estimated_cost NUMERIC,
  unpriced_requests BIGINT NOT NULL,
  PRIMARY KEY (org_id, hour, provider, currency)
);
COMMENT ON TABLE raw.usage_event_hours IS 'Of the last days; older hours are only in the rollups';
COMMENT ON COLUMN raw.usage_event_hours.estimated_cost IS 'NULL: none of the requests has a price';

INSERT INTO raw.usage_event_hours (org_id, hour, provider, currency, requests, total_tokens, unpriced_requests)
SELECT e.org_id, date_trunc('hour', e.occurred_at, 'UTC'), e.provider, e.currency, count(*), sum(e.input_tokens + e.output_tokens), count(*)
FROM raw.usage_events AS e
WHERE e.occurred_at >= now() - INTERVAL '2 days'
  AND NOT EXISTS (
    SELECT FROM raw.pending_usage_events AS p WHERE p.org_id = e.org_id AND p.provider = e.provider AND p.event_number = e.event_number
  )
GROUP BY 1, 2, 3, 4;

-- raw.latency_bucket of a whole latency is how many of these bounds are at or below it: a search instead of logarithms of numerics.
CREATE FUNCTION raw.latency_bounds() RETURNS FLOAT[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT array_agg(power(1.02::FLOAT, bucket + 5e-10) ORDER BY bucket) FROM generate_series(0, 1100) AS bucket $$;

-- Usage of the last `p_minutes` whole minutes and of the running one, one statement and so one moment. Rows by `slice`:
-- 'window' (one), 'minute' (p_minutes + 1, those without events too), 'model' and 'feature' (those with events, most tokens first),
-- 'hour' and 'day' (one each: all of the UTC hour and day so far; without latency, errors and parts of tokens).
CREATE FUNCTION marts.get_live_usage(p_org_id UUID, p_minutes INTEGER DEFAULT 15, p_now TIMESTAMPTZ DEFAULT NULL)
RETURNS TABLE (
  slice TEXT, slice_start TIMESTAMPTZ, slice_end TIMESTAMPTZ, provider TEXT, model TEXT, feature TEXT,
  total_tokens BIGINT, input_tokens BIGINT, output_tokens BIGINT, cached_tokens BIGINT,
  request_count BIGINT, error_count BIGINT, requests_with_errors_known BIGINT,
  estimated_cost NUMERIC, currency TEXT, unpriced_requests BIGINT, other_currency_requests BIGINT,
  total_latency_ms BIGINT, latency_request_count BIGINT, p50_latency_ms BIGINT, p95_latency_ms BIGINT, p99_latency_ms BIGINT,
  late_requests BIGINT, ahead_requests BIGINT
)
-- The planner takes every event for a group of its own and would sort them all, but groups are few; compiling takes longer than running.
LANGUAGE plpgsql STABLE SET work_mem = '256MB' SET enable_sort = off SET jit = off AS
$$
DECLARE
  v_now TIMESTAMPTZ := coalesce(p_now, statement_timestamp());
  v_minute TIMESTAMPTZ := date_trunc('minute', v_now, 'UTC');
  v_hour TIMESTAMPTZ := date_trunc('hour', v_now, 'UTC');
  v_day TIMESTAMPTZ := date_trunc('day', v_now, 'UTC');
  v_currency TEXT;
  v_start TIMESTAMPTZ;
  v_end TIMESTAMPTZ := v_minute + INTERVAL '1 minute';
BEGIN
  IF p_minutes IS NULL OR p_minutes NOT BETWEEN 1 AND 60 THEN
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
      MESSAGE = format('p_minutes is %s; it must be a whole number from 1 to 60.', coalesce(p_minutes::TEXT, 'NULL'));
  END IF;
  SELECT o.currency INTO v_currency FROM app.organizations AS o WHERE o.id = p_org_id;
  IF NOT FOUND THEN
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
      MESSAGE = format('No organisation has the id %s, or it is not yours to see.', coalesce(p_org_id::TEXT, 'NULL'));
  END IF;
  v_start := v_minute - make_interval(mins => p_minutes);

  RETURN QUERY
  WITH cells AS MATERIALIZED (
    SELECT
      date_bin(INTERVAL '1 minute', e.occurred_at, TIMESTAMPTZ '2000-01-01 00:00Z') AS minute, e.provider, e.model, e.feature,
      count(*) AS requests, count(*) FILTER (WHERE e.is_error) AS errors, count(e.is_error) AS with_errors,
      sum(e.input_tokens) AS input, sum(e.output_tokens) AS output, sum(e.cached_input_tokens) AS cached,
      sum(e.estimated_cost) FILTER (WHERE e.currency = v_currency) AS cost,
      count(*) FILTER (WHERE e.estimated_cost IS NULL) AS unpriced,
      count(*) FILTER (WHERE e.currency <> v_currency AND e.estimated_cost IS NOT NULL) AS other_currency,
      sum(e.latency_ms) AS latency, count(e.latency_ms) AS with_latency,
      count(*) FILTER (WHERE e.received_at > e.occurred_at + INTERVAL '1 minute') AS late
    FROM raw.usage_events AS e
    WHERE e.org_id = p_org_id AND e.occurred_at >= v_start AND e.occurred_at < v_end
    GROUP BY 1, 2, 3, 4
  ), sums AS (
    SELECT
      grouping(c.minute, c.model, c.feature) AS kind, c.minute, c.provider, c.model, c.feature,
      sum(c.requests)::BIGINT AS requests, sum(c.errors)::BIGINT AS errors, sum(c.with_errors)::BIGINT AS with_errors,
      sum(c.input)::BIGINT AS input, sum(c.output)::BIGINT AS output, sum(c.cached)::BIGINT AS cached, sum(c.cost) AS cost,
      sum(c.unpriced)::BIGINT AS unpriced, sum(c.other_currency)::BIGINT AS other_currency, sum(c.latency)::BIGINT AS latency,
      sum(c.with_latency)::BIGINT AS with_latency, sum(c.late)::BIGINT AS late
    FROM cells AS c
    GROUP BY GROUPING SETS ((c.minute), (c.provider, c.model), (c.feature), ())
  ), latencies AS MATERIALIZED (
    SELECT
      date_bin(INTERVAL '1 minute', e.occurred_at, TIMESTAMPTZ '2000-01-01 00:00Z') AS minute, e.provider, e.model, e.feature,
      width_bucket(e.latency_ms::FLOAT, raw.latency_bounds()) AS bucket, count(*) AS requests
    FROM raw.usage_events AS e
    WHERE e.org_id = p_org_id AND e.occurred_at >= v_start AND e.occurred_at < v_end AND e.latency_ms IS NOT NULL
    GROUP BY 1, 2, 3, 4, 5
  ), counted AS (
    SELECT grouping(l.minute, l.model, l.feature) AS kind, l.minute, l.provider, l.model, l.feature, l.bucket, sum(l.requests) AS requests
    FROM latencies AS l
    GROUP BY GROUPING SETS ((l.bucket, l.minute), (l.bucket, l.provider, l.model), (l.bucket, l.feature), (l.bucket))
  ), histograms AS (
    SELECT n.kind, n.minute, n.provider, n.model, n.feature, jsonb_object_agg(n.bucket, n.requests) AS histogram
    FROM counted AS n
    GROUP BY 1, 2, 3, 4, 5
  ), summed AS (
    SELECT CASE s.kind WHEN 3 THEN 'minute' WHEN 5 THEN 'model' WHEN 6 THEN 'feature' ELSE 'window' END AS kind, s.minute, s.provider,
      s.model, s.feature, s.requests, s.errors, s.with_errors, s.input, s.output, s.cached, s.cost, s.unpriced, s.other_currency,
      s.latency, s.with_latency, s.late, h.histogram
    FROM sums AS s
    LEFT JOIN histograms AS h
      ON h.kind = s.kind AND (h.minute, h.provider, h.model, h.feature) IS NOT DISTINCT FROM (s.minute, s.provider, s.model, s.feature)
    WHERE s.requests > 0
  ), minutes AS (
    SELECT m AS minute FROM generate_series(v_start, v_minute, INTERVAL '1 minute') AS m
  ), rows AS (
    SELECT 'minute' AS slice, m.minute AS starts, m.minute + INTERVAL '1 minute' AS ends, f.*
    FROM minutes AS m LEFT JOIN summed AS f ON f.kind = 'minute' AND f.minute = m.minute
    UNION ALL
    SELECT 'window', v_start, v_end, f.* FROM (VALUES (1)) AS always LEFT JOIN summed AS f ON f.kind = 'window'
    UNION ALL
    SELECT f.kind, v_start, v_end, f.* FROM summed AS f WHERE f.kind IN ('model', 'feature')
  ), so_far AS (
    SELECT h.hour, h.currency, h.requests, h.total_tokens AS tokens, h.estimated_cost AS cost, h.unpriced_requests AS unpriced
    FROM raw.usage_event_hours AS h WHERE h.org_id = p_org_id AND h.hour >= v_day AND h.hour <= v_hour
    UNION ALL
    SELECT
      date_bin(INTERVAL '1 hour', e.occurred_at, TIMESTAMPTZ '2000-01-01 00:00Z'), e.currency, count(*),
      sum(e.input_tokens + e.output_tokens), sum(e.estimated_cost), count(*) FILTER (WHERE e.estimated_cost IS NULL)
    FROM raw.pending_usage_events AS p
    JOIN raw.usage_events AS e ON e.event_number = p.event_number
    WHERE p.org_id = p_org_id AND e.occurred_at >= v_day AND e.occurred_at < v_hour + INTERVAL '1 hour'
    GROUP BY 1, 2
  )
  SELECT
    r.slice, r.starts, r.ends, r.provider, r.model, r.feature,
    coalesce(r.input + r.output, 0), coalesce(r.input, 0), coalesce(r.output, 0),
    CASE WHEN r.requests IS NULL THEN 0 ELSE r.cached END,
    coalesce(r.requests, 0),
    CASE WHEN r.requests IS NULL THEN 0 WHEN r.with_errors > 0 THEN r.errors END, coalesce(r.with_errors, 0),
    CASE WHEN r.requests IS NULL THEN 0 ELSE r.cost END, v_currency, coalesce(r.unpriced, 0), coalesce(r.other_currency, 0),
    r.latency, coalesce(r.with_latency, 0),
    raw.latency_percentile(r.histogram, 0.5)::BIGINT, raw.latency_percentile(r.histogram, 0.95)::BIGINT,
    raw.latency_percentile(r.histogram, 0.99)::BIGINT, coalesce(r.late, 0),
    CASE WHEN r.slice = 'window' THEN (
      SELECT count(*) FROM raw.usage_events AS e WHERE e.org_id = p_org_id AND e.occurred_at >= v_end
    ) END
  FROM rows AS r
  UNION ALL
  SELECT
    period.slice, period.starts, period.ends, NULL, NULL, NULL,
    coalesce(sum(s.tokens), 0)::BIGINT, NULL, NULL, NULL, coalesce(sum(s.requests), 0)::BIGINT, NULL, NULL,
    CASE WHEN count(s.requests) = 0 THEN 0 ELSE sum(s.cost) FILTER (WHERE s.currency = v_currency) END, v_currency,
    coalesce(sum(s.unpriced), 0)::BIGINT,
    coalesce(sum(s.requests - s.unpriced) FILTER (WHERE s.currency <> v_currency), 0)::BIGINT,
    NULL, NULL, NULL, NULL, NULL, NULL, NULL
  FROM (
    VALUES ('hour', v_hour, v_hour + INTERVAL '1 hour'), ('day', v_day, v_day + INTERVAL '24 hours')
  ) AS period (slice, starts, ends)
  LEFT JOIN so_far AS s ON s.hour >= period.starts
  GROUP BY 1, 2, 3
  ORDER BY 1, 2, 7 DESC, 4, 5, 6;
END
$$;

-- Tells whoever listens for the organisation's events that there are new ones; the message itself is empty. Each organisation has a
-- channel of its own, so nobody learns of another's without knowing its id. A transaction that notifies holds a lock of the whole
-- server until it is on disk, so that many at once would wait for each other: one at a time does. Whoever is left out has a
-- listener's next look to be seen by (docs/decisions/0019).
CREATE FUNCTION raw.announce_events(p_org_id UUID) RETURNS BOOLEAN
LANGUAGE plpgsql AS
$$
BEGIN
  IF NOT pg_try_advisory_xact_lock(7265016) THEN
    RETURN false;
  END IF;
  PERFORM pg_notify('tokentra_events_' || p_org_id, '');
  RETURN true;
END
$$;

-- ACCESS
-- What the function reads, of a reader's own organisations (row-level security): no metadata, errors, keys or users.
CREATE FUNCTION app.apply_live_access() RETURNS VOID
LANGUAGE plpgsql AS
$$
DECLARE
  v_reader TEXT := app.access_role('reader');
BEGIN
  EXECUTE format(
    'GRANT SELECT (event_number, org_id, occurred_at, received_at, provider, model, feature, input_tokens, output_tokens, '
    'cached_input_tokens, is_error, latency_ms, currency, estimated_cost, cost_basis) ON raw.usage_events TO %I', v_reader
  );
  EXECUTE format('GRANT SELECT (org_id, event_number) ON raw.pending_usage_events TO %I', v_reader);
  EXECUTE format('GRANT SELECT ON raw.usage_event_hours TO %I', v_reader);
END
$$;

ALTER FUNCTION app.apply_access() RENAME TO apply_access_before_live;
CREATE FUNCTION app.apply_access() RETURNS BOOLEAN
LANGUAGE plpgsql AS
$$
BEGIN
  IF NOT app.apply_access_before_live() THEN
    RETURN false;
  END IF;
  PERFORM app.apply_live_access();
  RETURN true;
END
$$;
