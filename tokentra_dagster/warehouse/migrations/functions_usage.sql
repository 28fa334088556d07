-- Specification 2.7: summary, trend and breakdown; and the drilldown of section 6.

-- One row. Counts are 0 in a period without usage; where there is usage but no source says, they are NULL (unknown).
CREATE OR REPLACE FUNCTION marts.get_usage_summary(
  p_org_id UUID, p_start_date TIMESTAMPTZ, p_end_date TIMESTAMPTZ, p_provider TEXT DEFAULT NULL, p_model TEXT DEFAULT NULL,
  p_team_id UUID DEFAULT NULL, p_project_id UUID DEFAULT NULL, p_feature TEXT DEFAULT NULL, p_environment TEXT DEFAULT NULL
) RETURNS TABLE (
  total_tokens BIGINT, input_tokens BIGINT, output_tokens BIGINT, cached_tokens BIGINT, total_requests BIGINT,
  success_requests BIGINT, error_requests BIGINT, avg_latency_ms BIGINT, p50_latency_ms BIGINT, p95_latency_ms BIGINT,
  p99_latency_ms BIGINT, error_rate DOUBLE PRECISION, cache_hit_rate DOUBLE PRECISION, tokens_per_request DOUBLE PRECISION,
  unique_models BIGINT, unique_users BIGINT, estimated_cost NUMERIC, cache_creation_tokens BIGINT, unpriced_tokens BIGINT,
  min_latency_ms BIGINT, max_latency_ms BIGINT, latency_is_approximate BOOLEAN, unique_features BIGINT, unique_api_keys BIGINT,
  requests_per_minute DOUBLE PRECISION, currency TEXT, cost_by_currency JSONB, record_count BIGINT
)
LANGUAGE plpgsql STABLE AS
$$
DECLARE
  v_condition TEXT := concat_ws(' AND ', 'true',
    CASE WHEN p_provider IS NOT NULL THEN format('provider = %L', p_provider) END,
    CASE WHEN p_model IS NOT NULL THEN format('model = %L', p_model) END,
    CASE WHEN p_team_id IS NOT NULL THEN format('team_id = %L', p_team_id) END,
    CASE WHEN p_project_id IS NOT NULL THEN format('project_id = %L', p_project_id) END,
    CASE WHEN p_feature IS NOT NULL THEN format('feature = %L', p_feature) END,
    CASE WHEN p_environment IS NOT NULL THEN format('environment = %L', p_environment) END);
  v_is_filtered BOOLEAN := num_nonnulls(p_model, p_team_id, p_project_id, p_feature, p_environment) > 0;
  v_users BIGINT;
  v_keys BIGINT;
BEGIN
  -- Sets of whole days are kept per provider; under other filters users are counted from the rollups' own sets, and API
  -- keys, of which the rollups hold none, are unknown.
  IF v_is_filtered THEN
    EXECUTE format('SELECT count(*) FROM (SELECT DISTINCT user_id FROM (%s) AS named) AS counted', marts.usage_parts(
      'usage_rollup', p_org_id, p_start_date, p_end_date, 'unnest(user_ids) AS user_id', v_condition)) INTO v_users;
  ELSE
    v_users := marts.count_active(p_org_id, p_start_date, p_end_date, 'user', p_provider);
    v_keys := marts.count_active(p_org_id, p_start_date, p_end_date, 'api_key', p_provider);
  END IF;
  RETURN QUERY EXECUTE format($sql$
    WITH grouped AS MATERIALIZED (
      SELECT currency, model, feature, %2$s, %5$s, sum(estimated_cost) AS cost,
        min(min_latency_ms)::BIGINT AS min_latency_ms, max(max_latency_ms)::BIGINT AS max_latency_ms,
        sum(latency_counts) AS latency_counts, bool_or(latency_is_approximate) AS latency_is_approximate,
        sum(request_count) FILTER (WHERE p50_latency_ms IS NOT NULL) AS requests_with_percentiles,
        sum(p50_latency_ms::NUMERIC * request_count) AS p50_sum, sum(p95_latency_ms::NUMERIC * request_count) AS p95_sum,
        sum(p99_latency_ms::NUMERIC * request_count) AS p99_sum
      FROM (%1$s) AS part
      GROUP BY currency, model, feature
    ),
    totals AS (
      SELECT %3$s, count(*) = 0 AS is_empty, sum(cache_creation_tokens)::BIGINT AS cache_creation_tokens,
        sum(success_count)::BIGINT AS success_count, sum(tokens_with_requests_known)::BIGINT AS tokens_with_requests_known,
        sum(input_with_cache_known)::BIGINT AS input_with_cache_known, min(min_latency_ms) AS min_latency_ms, max(max_latency_ms) AS max_latency_ms,
        count(DISTINCT model) AS models, count(DISTINCT feature) AS features,
        sum(latency_counts) AS latency_counts, bool_or(latency_is_approximate) AS latency_is_approximate,
        -- Where no source has a histogram: the request-weighted means of the percentiles given.
        ARRAY[round(sum(p50_sum) / nullif(sum(requests_with_percentiles), 0))::BIGINT,
          round(sum(p95_sum) / nullif(sum(requests_with_percentiles), 0))::BIGINT,
          round(sum(p99_sum) / nullif(sum(requests_with_percentiles), 0))::BIGINT] AS mean_percentiles
      FROM grouped
    ),
    -- Histograms of hours and records that no day holds: their entries are summed before they become one number.
    edges AS (
      SELECT sum((entry.requests || 'e' || 12 * entry.bucket::INTEGER)::NUMERIC) AS latency_counts
      FROM (
        SELECT one.key AS bucket, sum(one.value::BIGINT) AS requests
        FROM (%4$s) AS part
        CROSS JOIN LATERAL jsonb_each_text(part.latency_entries) AS one
        GROUP BY one.key
      ) AS entry
    ),
    percentiles AS (
      -- Correction 6: from the merged histogram.
      SELECT coalesce(raw.latency_percentiles(
        CASE WHEN num_nonnulls(totals.latency_counts, edges.latency_counts) > 0
          THEN coalesce(totals.latency_counts, 0) + coalesce(edges.latency_counts, 0) END, '{0.50,0.95,0.99}'),
        CASE WHEN totals.latency_is_approximate THEN totals.mean_percentiles END) AS latency_ms
      FROM totals
      CROSS JOIN edges
    )
    SELECT coalesce(total_tokens, 0), coalesce(input_tokens, 0), coalesce(output_tokens, 0),
      CASE WHEN is_empty THEN 0 ELSE cached_tokens END, CASE WHEN is_empty THEN 0 ELSE request_count END,
      CASE WHEN is_empty THEN 0 ELSE success_count END, CASE WHEN is_empty THEN 0 ELSE error_count END,
      round(total_latency_ms::NUMERIC / nullif(latency_request_count, 0))::BIGINT,
      percentiles.latency_ms[1], percentiles.latency_ms[2], percentiles.latency_ms[3],
      error_count / nullif(requests_with_errors_known, 0)::DOUBLE PRECISION * 100,
      cached_tokens / nullif(input_with_cache_known, 0)::DOUBLE PRECISION * 100,
      tokens_with_requests_known / nullif(request_count, 0)::DOUBLE PRECISION,
      models, CASE WHEN is_empty THEN 0 ELSE nullif($1, 0) END,
      CASE WHEN is_empty THEN 0 ELSE estimated_cost END,
      CASE WHEN is_empty THEN 0 ELSE cache_creation_tokens END, coalesce(unpriced_tokens, 0), min_latency_ms, max_latency_ms,
      totals.latency_is_approximate, CASE WHEN is_empty THEN 0 ELSE nullif(features, 0) END,
      CASE WHEN is_empty THEN 0 ELSE nullif($2, 0) END,
      CASE WHEN is_empty THEN 0 ELSE request_count END / nullif($3, 0), $4,
      coalesce((
        SELECT jsonb_object_agg(by_currency.currency, by_currency.cost)
        FROM (SELECT currency, sum(cost) AS cost FROM grouped WHERE cost IS NOT NULL GROUP BY currency) AS by_currency
      ), '{}'), coalesce(record_count, 0)
    FROM totals
    CROSS JOIN percentiles
  $sql$, marts.usage_parts('usage_rollup', p_org_id, p_start_date, p_end_date, marts.usage_measures()
      || ', model, feature, cache_creation_tokens, success_count, min_latency_ms, max_latency_ms, latency_counts, latency_is_approximate, '
      || 'p50_latency_ms, p95_latency_ms, p99_latency_ms', v_condition), marts.usage_sums(p_org_id), marts.usage_totals(),
    marts.usage_parts('usage_rollup', p_org_id, p_start_date, p_end_date, 'latency_entries', v_condition || ' AND latency_entries IS NOT NULL'),
    marts.usage_bases())
  USING v_users, v_keys, (extract(epoch FROM p_end_date - p_start_date) / 60)::DOUBLE PRECISION, marts.usage_currency(p_org_id);
END
$$;

-- Buckets with usage only, in time order. `value` is the metric: tokens, requests, errors, cost in the reporting currency,
-- or mean latency in milliseconds (corrections 12, 13, 17).
CREATE OR REPLACE FUNCTION marts.get_usage_trend(
  p_org_id UUID, p_start_date TIMESTAMPTZ, p_end_date TIMESTAMPTZ, p_granularity TEXT DEFAULT 'day', p_metric TEXT DEFAULT 'tokens'
) RETURNS TABLE (
  time_bucket TIMESTAMPTZ, value NUMERIC, input_tokens BIGINT, output_tokens BIGINT, requests BIGINT, error_rate DOUBLE PRECISION,
  total_tokens BIGINT, cached_tokens BIGINT, errors BIGINT, estimated_cost NUMERIC, avg_latency_ms BIGINT, unpriced_tokens BIGINT
)
LANGUAGE plpgsql STABLE AS
$$
DECLARE
  v_value TEXT := CASE p_metric
    WHEN 'tokens' THEN 'total_tokens::NUMERIC'
    WHEN 'requests' THEN 'request_count::NUMERIC'
    WHEN 'errors' THEN 'error_count::NUMERIC'
    WHEN 'cost' THEN 'estimated_cost'
    WHEN 'latency' THEN 'round(total_latency_ms::NUMERIC / nullif(latency_request_count, 0), 3)'
  END;
BEGIN
  IF (p_granularity IN ('minute', 'hour', 'day', 'week', 'month')) IS NOT TRUE THEN
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format(
      'p_granularity is %s; it must be one of minute, hour, day, week, month.', coalesce(quote_literal(p_granularity), 'NULL'));
  END IF;
  IF v_value IS NULL THEN
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format(
      'p_metric is %s; it must be one of tokens, requests, errors, cost, latency.', coalesce(quote_literal(p_metric), 'NULL'));
  END IF;
  RETURN QUERY EXECUTE format($sql$
    SELECT bucket AT TIME ZONE 'UTC', %3$s, input_tokens, output_tokens, request_count,
      error_count / nullif(requests_with_errors_known, 0)::DOUBLE PRECISION * 100,
      total_tokens, cached_tokens, error_count, estimated_cost,
      round(total_latency_ms::NUMERIC / nullif(latency_request_count, 0))::BIGINT, unpriced_tokens
    FROM (
      SELECT date_trunc(%4$L, moment) AS bucket, %2$s
      FROM (%1$s) AS part
      GROUP BY 1
    ) AS summed
    ORDER BY bucket
  $sql$, marts.usage_parts('usage_totals', p_org_id, p_start_date, p_end_date, 'moment, ' || marts.usage_measures(), 'true',
      CASE WHEN p_granularity IN ('minute', 'hour') THEN p_granularity ELSE 'day' END),
    marts.usage_sums(p_org_id), v_value, p_granularity);
END
$$;

-- The p_limit values with most tokens and, where there are more, one row for all the others (correction 15). Percentages
-- are of all tokens. p_path narrows by other dimensions first (section 6, corrections 23, 24): {"model": "gpt-4o"}; a JSON
-- null, or the word Unknown, is usage without a value.
CREATE OR REPLACE FUNCTION marts.get_usage_drilldown(
  p_org_id UUID, p_start TIMESTAMPTZ, p_end TIMESTAMPTZ, p_path JSONB, p_dimension TEXT, p_limit INTEGER DEFAULT 10
) RETURNS TABLE (
  dimension_value TEXT, total_tokens BIGINT, input_tokens BIGINT, output_tokens BIGINT, request_count BIGINT, error_count BIGINT,
  avg_latency_ms BIGINT, estimated_cost NUMERIC, percentage DOUBLE PRECISION, dimension_label TEXT, other_count BIGINT,
  is_other BOOLEAN, is_unknown BOOLEAN, cached_tokens BIGINT, unpriced_tokens BIGINT, error_rate DOUBLE PRECISION,
  cost_percentage DOUBLE PRECISION, currency TEXT
)
LANGUAGE plpgsql STABLE AS
$$
DECLARE
  v_column TEXT := marts.usage_dimension(p_dimension);
  v_path JSONB := coalesce(p_path, '{}');
  v_condition TEXT := marts.usage_condition(v_path);
  v_columns TEXT[] := v_column || ARRAY(SELECT marts.usage_dimension(step) FROM jsonb_object_keys(v_path) AS step);
BEGIN
  PERFORM marts.require_limit(p_limit);
  RETURN QUERY EXECUTE format($sql$
    WITH measured AS (
      SELECT %3$I::TEXT AS value, %2$s
      FROM (%1$s) AS part
      GROUP BY %3$I
    ),
    ranked AS (
      SELECT *, row_number() OVER (ORDER BY total_tokens DESC, value COLLATE "C" NULLS LAST) AS place,
        sum(total_tokens) OVER () AS all_tokens, sum(estimated_cost) OVER () AS all_cost
      FROM measured
    ),
    shown AS (
      SELECT least(place, $1::BIGINT + 1) AS place, coalesce(least(place, $1::BIGINT + 1) > $1, false) AS is_other, min(value) AS value,
        count(*) AS members, max(all_tokens) AS all_tokens, max(all_cost) AS all_cost, %4$s
      FROM ranked
      GROUP BY 1
    )
    SELECT CASE WHEN is_other THEN 'Other' ELSE coalesce(value, 'Unknown') END,
      total_tokens, input_tokens, output_tokens, request_count, error_count,
      round(total_latency_ms::NUMERIC / nullif(latency_request_count, 0))::BIGINT, estimated_cost,
      total_tokens / nullif(all_tokens, 0)::DOUBLE PRECISION * 100,
      CASE WHEN is_other THEN 'Other' ELSE coalesce(%5$s, value, 'Unknown') END,
      CASE WHEN is_other THEN members END, is_other, value IS NULL AND NOT is_other, cached_tokens, unpriced_tokens,
      error_count / nullif(requests_with_errors_known, 0)::DOUBLE PRECISION * 100,
      (estimated_cost / nullif(all_cost, 0) * 100)::DOUBLE PRECISION, $2
    FROM shown
    ORDER BY place
  $sql$, marts.usage_parts(marts.usage_relation(v_columns), p_org_id, p_start, p_end,
      v_column || ', ' || marts.usage_measures(), v_condition),
    marts.usage_sums(p_org_id), v_column, marts.usage_totals(), marts.usage_label(p_org_id, v_column, 'value'))
  USING p_limit, marts.usage_currency(p_org_id);
END
$$;

CREATE OR REPLACE FUNCTION marts.get_usage_breakdown(
  p_org_id UUID, p_start_date TIMESTAMPTZ, p_end_date TIMESTAMPTZ, p_dimension TEXT, p_limit INTEGER DEFAULT 10
) RETURNS TABLE (
  dimension_value TEXT, total_tokens BIGINT, input_tokens BIGINT, output_tokens BIGINT, request_count BIGINT, error_count BIGINT,
  avg_latency_ms BIGINT, estimated_cost NUMERIC, percentage DOUBLE PRECISION, dimension_label TEXT, other_count BIGINT,
  is_other BOOLEAN, is_unknown BOOLEAN, cached_tokens BIGINT, unpriced_tokens BIGINT, error_rate DOUBLE PRECISION,
  cost_percentage DOUBLE PRECISION, currency TEXT
)
LANGUAGE plpgsql STABLE AS
$$ BEGIN RETURN QUERY SELECT * FROM marts.get_usage_drilldown(p_org_id, p_start_date, p_end_date, '{}', p_dimension, p_limit); END $$;
