-- One function that the analytics read: sums over any dimensions and buckets (sections 5 to 7, 11), from the rollups.

-- A row for each bucket and combination of values with usage, in order; time_bucket is NULL without a granularity. The last
-- three columns are what rates divide by. Minutes and hours leave out what is only known by day.
CREATE OR REPLACE FUNCTION marts.get_usage_frame(
  p_org_id UUID, p_start TIMESTAMPTZ, p_end TIMESTAMPTZ, p_dimensions TEXT[] DEFAULT '{}', p_granularity TEXT DEFAULT NULL,
  p_path JSONB DEFAULT '{}'
) RETURNS TABLE (
  time_bucket TIMESTAMPTZ, dimension_values TEXT[], input_tokens BIGINT, output_tokens BIGINT, total_tokens BIGINT, cached_tokens BIGINT,
  cache_creation_tokens BIGINT, request_count BIGINT, success_count BIGINT, error_count BIGINT, total_latency_ms BIGINT,
  latency_request_count BIGINT, estimated_cost NUMERIC, unpriced_tokens BIGINT, record_count BIGINT,
  requests_with_errors_known BIGINT, input_with_cache_known BIGINT, tokens_with_requests_known BIGINT
)
LANGUAGE plpgsql STABLE AS
$$
DECLARE
  v_columns TEXT[] := ARRAY(
    SELECT marts.usage_dimension(named.dimension) FROM unnest(p_dimensions) WITH ORDINALITY AS named (dimension, place) ORDER BY named.place);
  v_condition TEXT := marts.usage_condition(p_path);
  v_path_columns TEXT[] := ARRAY(SELECT marts.usage_dimension(step) FROM jsonb_object_keys(p_path) AS step);
  v_bucket TEXT := CASE WHEN p_granularity IS NULL THEN 'NULL::TIMESTAMP' ELSE format('date_trunc(%L, moment)', p_granularity) END;
  v_values TEXT := (SELECT 'ARRAY[' || coalesce(string_agg(format('%I::TEXT', name), ', '), '') || ']::TEXT[]' FROM unnest(v_columns) AS named (name));
BEGIN
  IF p_granularity IS NOT NULL AND p_granularity NOT IN ('minute', 'hour', 'day', 'week', 'month') THEN
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format(
      'p_granularity is %L; it must be one of minute, hour, day, week, month, or NULL for the whole period.', p_granularity);
  END IF;
  RETURN QUERY EXECUTE format($sql$
    SELECT bucket AT TIME ZONE 'UTC', dimension_values, input_tokens, output_tokens, total_tokens, cached_tokens,
      cache_creation_tokens, request_count, success_count, error_count, total_latency_ms, latency_request_count, estimated_cost,
      unpriced_tokens, record_count, requests_with_errors_known, input_with_cache_known, tokens_with_requests_known
    FROM (
      SELECT %3$s AS bucket, %4$s AS dimension_values, %2$s, %5$s
      FROM (%1$s) AS part
      GROUP BY 1, 2
    ) AS summed
    ORDER BY bucket, dimension_values
  $sql$, marts.usage_parts(marts.usage_relation(v_columns || v_path_columns), p_org_id, p_start, p_end,
      concat_ws(', ', 'moment', nullif(array_to_string(v_columns, ', '), ''), marts.usage_measures(), 'cache_creation_tokens, success_count'),
      v_condition, CASE WHEN p_granularity IN ('minute', 'hour') THEN p_granularity ELSE 'day' END),
    marts.usage_sums(p_org_id), v_bucket, v_values, marts.usage_bases());
END
$$;
