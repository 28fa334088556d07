-- Specification 2.7 and sections 4, 6, 9, 10: top users, comparison of two periods, coverage of attribution, the current rate.

-- Totals once per user, whatever models they used (correction 16); usage that no source gives a user is in no row.
CREATE OR REPLACE FUNCTION marts.get_top_users(
  p_org_id UUID, p_start_date DATE, p_end_date DATE, p_limit INTEGER DEFAULT 10, p_order_by TEXT DEFAULT 'tokens'
) RETURNS TABLE (
  user_identifier TEXT, user_display_name TEXT, total_tokens BIGINT, request_count BIGINT, estimated_cost NUMERIC,
  model_usage JSONB, last_activity_at TIMESTAMPTZ, input_tokens BIGINT, output_tokens BIGINT, cached_tokens BIGINT,
  error_count BIGINT, avg_latency_ms BIGINT, unpriced_tokens BIGINT, active_days BIGINT, first_activity_at TIMESTAMPTZ,
  feature_usage JSONB, currency TEXT
)
LANGUAGE plpgsql STABLE AS
$$
DECLARE
  v_order TEXT := CASE p_order_by WHEN 'tokens' THEN 'total_tokens' WHEN 'requests' THEN 'request_count' WHEN 'cost' THEN 'estimated_cost' END;
BEGIN
  PERFORM marts.require_limit(p_limit);
  IF v_order IS NULL THEN
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format(
      'p_order_by is %s; it must be one of tokens, requests, cost.', coalesce(quote_literal(p_order_by), 'NULL'));
  END IF;
  RETURN QUERY EXECUTE format($sql$
    WITH days AS NOT MATERIALIZED (
      SELECT * FROM marts.user_activity AS activity
      WHERE activity.org_id = $1 AND activity.activity_date >= $2 AND activity.activity_date < $3 AND activity.user_identifier IS NOT NULL
    ),
    top AS MATERIALIZED (
      SELECT days.user_identifier, sum(total_tokens)::BIGINT AS total_tokens, sum(request_count)::BIGINT AS request_count,
        sum(estimated_cost) AS estimated_cost, max(last_activity_at) AS last_activity_at, sum(input_tokens)::BIGINT AS input_tokens,
        sum(output_tokens)::BIGINT AS output_tokens, sum(cached_tokens)::BIGINT AS cached_tokens, sum(error_count)::BIGINT AS error_count,
        round(sum(total_latency_ms) / nullif(sum(latency_request_count), 0))::BIGINT AS avg_latency_ms,
        sum(unpriced_tokens)::BIGINT AS unpriced_tokens, count(*) AS active_days, min(first_activity_at) AS first_activity_at
      FROM days
      GROUP BY days.user_identifier
      ORDER BY %1$I DESC NULLS LAST, days.user_identifier COLLATE "C"
      LIMIT $4
    )
    SELECT top.user_identifier, names.user_display_name, top.total_tokens, top.request_count, top.estimated_cost, coalesce(used.model_usage, '{}'),
      top.last_activity_at, top.input_tokens, top.output_tokens, top.cached_tokens, top.error_count, top.avg_latency_ms, top.unpriced_tokens,
      top.active_days, top.first_activity_at, coalesce(used.feature_usage, '{}'), $5
    FROM top
    LEFT JOIN intermediate.int_user_names AS names ON names.org_id = $1 AND names.user_identifier = top.user_identifier
    LEFT JOIN (
      SELECT summed.user_identifier,
        jsonb_object_agg(summed.name, jsonb_build_object('tokens', summed.tokens, 'requests', summed.requests)) FILTER (WHERE summed.kind = 'model') AS model_usage,
        jsonb_object_agg(summed.name, jsonb_build_object('tokens', summed.tokens, 'requests', summed.requests)) FILTER (WHERE summed.kind = 'feature') AS feature_usage
      FROM (
        SELECT days.user_identifier, spent.kind, entry.key AS name, sum((entry.value ->> 'tokens')::BIGINT)::BIGINT AS tokens,
          sum((entry.value ->> 'requests')::BIGINT)::BIGINT AS requests
        FROM days
        CROSS JOIN LATERAL (VALUES ('model', days.model_usage), ('feature', days.feature_usage)) AS spent (kind, usage)
        CROSS JOIN LATERAL jsonb_each(spent.usage) AS entry
        WHERE days.user_identifier IN (SELECT top.user_identifier FROM top)
        GROUP BY days.user_identifier, spent.kind, entry.key
      ) AS summed
      GROUP BY summed.user_identifier
    ) AS used ON used.user_identifier = top.user_identifier
    ORDER BY top.%1$I DESC NULLS LAST, top.user_identifier COLLATE "C"
  $sql$, v_order)
  USING p_org_id, p_start_date, p_end_date, p_limit, marts.usage_currency(p_org_id);
END
$$;

-- Two periods side by side: one row for everything, or one for each value of a dimension with usage in either (correction
-- 23). What had no usage is 0, a change from zero has no percentage (correction 18).
CREATE OR REPLACE FUNCTION marts.get_usage_comparison(
  p_org_id UUID, p_current_start TIMESTAMPTZ, p_current_end TIMESTAMPTZ, p_previous_start TIMESTAMPTZ, p_previous_end TIMESTAMPTZ,
  p_dimension TEXT DEFAULT NULL
) RETURNS TABLE (
  dimension_value TEXT, dimension_label TEXT, current_tokens BIGINT, previous_tokens BIGINT, token_change BIGINT,
  token_change_pct DOUBLE PRECISION, current_requests BIGINT, previous_requests BIGINT, request_change BIGINT,
  request_change_pct DOUBLE PRECISION, current_errors BIGINT, previous_errors BIGINT, current_cost NUMERIC, previous_cost NUMERIC,
  cost_change NUMERIC, cost_change_pct DOUBLE PRECISION, current_avg_latency_ms BIGINT, previous_avg_latency_ms BIGINT,
  current_percentage DOUBLE PRECISION, previous_percentage DOUBLE PRECISION, is_new BOOLEAN, is_churned BOOLEAN, currency TEXT
)
LANGUAGE plpgsql STABLE AS
$$
DECLARE
  v_column TEXT := CASE WHEN p_dimension IS NOT NULL THEN marts.usage_dimension(p_dimension) END;
  v_value TEXT := CASE WHEN v_column IS NULL THEN 'NULL::TEXT' ELSE format('%I::TEXT', v_column) END;
  v_relation TEXT := marts.usage_relation(array_remove(ARRAY[v_column], NULL));
  v_columns TEXT := concat_ws(', ', v_column, marts.usage_measures());
  v_measured TEXT := 'SELECT ' || v_value || ' AS value, ' || marts.usage_sums(p_org_id) || ' FROM (%s) AS part GROUP BY 1';
BEGIN
  RETURN QUERY EXECUTE format($sql$
    WITH compared AS (
      SELECT coalesce(this.value, that.value) AS value, this.value IS NULL AND that.value IS NULL AS is_unknown,
        coalesce(this.total_tokens, 0) AS tokens, coalesce(that.total_tokens, 0) AS tokens_before,
        CASE WHEN this.record_count IS NULL THEN 0 ELSE this.request_count END AS requests,
        CASE WHEN that.record_count IS NULL THEN 0 ELSE that.request_count END AS requests_before,
        CASE WHEN this.record_count IS NULL THEN 0 ELSE this.error_count END AS errors,
        CASE WHEN that.record_count IS NULL THEN 0 ELSE that.error_count END AS errors_before,
        CASE WHEN this.record_count IS NULL THEN 0 ELSE this.estimated_cost END AS cost,
        CASE WHEN that.record_count IS NULL THEN 0 ELSE that.estimated_cost END AS cost_before,
        round(this.total_latency_ms::NUMERIC / nullif(this.latency_request_count, 0))::BIGINT AS latency,
        round(that.total_latency_ms::NUMERIC / nullif(that.latency_request_count, 0))::BIGINT AS latency_before,
        this.record_count IS NULL AS is_absent, that.record_count IS NULL AS was_absent
      FROM (%1$s) AS this
      FULL JOIN (%2$s) AS that ON coalesce(this.value, E'\\x01') = coalesce(that.value, E'\\x01')
    )
    SELECT CASE WHEN $2 THEN coalesce(value, 'Unknown') END, CASE WHEN $2 THEN coalesce(%3$s, value, 'Unknown') END,
      tokens, tokens_before, tokens - tokens_before, (tokens - tokens_before) / nullif(tokens_before, 0)::DOUBLE PRECISION * 100,
      requests, requests_before, requests - requests_before, (requests - requests_before) / nullif(requests_before, 0)::DOUBLE PRECISION * 100,
      errors, errors_before, cost, cost_before, cost - cost_before, ((cost - cost_before) / nullif(cost_before, 0) * 100)::DOUBLE PRECISION,
      latency, latency_before, tokens / nullif(sum(tokens) OVER (), 0)::DOUBLE PRECISION * 100,
      tokens_before / nullif(sum(tokens_before) OVER (), 0)::DOUBLE PRECISION * 100,
      was_absent AND NOT is_absent, is_absent AND NOT was_absent, $1
    FROM compared
    ORDER BY greatest(tokens, tokens_before) DESC, value COLLATE "C" NULLS LAST
  $sql$,
    format(v_measured, marts.usage_parts(v_relation, p_org_id, p_current_start, p_current_end, v_columns)),
    format(v_measured, marts.usage_parts(v_relation, p_org_id, p_previous_start, p_previous_end, v_columns)),
    marts.usage_label(p_org_id, coalesce(v_column, ''), 'value'))
  USING marts.usage_currency(p_org_id), v_column IS NOT NULL;
  -- Without a dimension and without usage in either period there is still one row, of zeros.
  IF NOT FOUND AND v_column IS NULL THEN
    RETURN QUERY SELECT NULL::TEXT, NULL::TEXT, 0::BIGINT, 0::BIGINT, 0::BIGINT, NULL::FLOAT8, 0::BIGINT, 0::BIGINT, 0::BIGINT, NULL::FLOAT8,
      0::BIGINT, 0::BIGINT, 0::NUMERIC, 0::NUMERIC, 0::NUMERIC, NULL::FLOAT8, NULL::BIGINT, NULL::BIGINT, NULL::FLOAT8, NULL::FLOAT8,
      false, false, marts.usage_currency(p_org_id);
  END IF;
END
$$;

-- How much of the usage is attributed, per dimension of attribution (section 9, correction 33): over all usage.
CREATE OR REPLACE FUNCTION marts.get_usage_coverage(p_org_id UUID, p_start TIMESTAMPTZ, p_end TIMESTAMPTZ) RETURNS TABLE (
  dimension TEXT, attributed_tokens BIGINT, total_tokens BIGINT, token_coverage_pct DOUBLE PRECISION, attributed_requests BIGINT,
  total_requests BIGINT, request_coverage_pct DOUBLE PRECISION, attributed_cost NUMERIC, total_cost NUMERIC,
  cost_coverage_pct DOUBLE PRECISION, attributed_records BIGINT, total_records BIGINT, record_coverage_pct DOUBLE PRECISION, currency TEXT
)
LANGUAGE plpgsql STABLE AS
$$
DECLARE
  v_measures CONSTANT TEXT := 'total_tokens, request_count, estimated_cost, currency, record_count';
BEGIN
  RETURN QUERY EXECUTE format($sql$
    WITH attributed AS (
      SELECT named.place, named.dimension, named.is_attributed, part.total_tokens, part.request_count, part.record_count,
        CASE WHEN part.currency = $1 THEN part.estimated_cost END AS estimated_cost
      FROM (%1$s) AS part
      CROSS JOIN LATERAL (VALUES (1, 'team', team_id IS NOT NULL), (2, 'project', project_id IS NOT NULL),
        (3, 'cost_center', cost_center_id IS NOT NULL), (4, 'feature', feature IS NOT NULL),
        (6, 'environment', environment IS NOT NULL)) AS named (place, dimension, is_attributed)
      UNION ALL
      SELECT 5, 'user', user_id IS NOT NULL, total_tokens, request_count, record_count, CASE WHEN currency = $1 THEN estimated_cost END
      FROM (%2$s) AS part
      UNION ALL
      SELECT 7, 'api_key', api_key_id IS NOT NULL, total_tokens, request_count, record_count, CASE WHEN currency = $1 THEN estimated_cost END
      FROM (%3$s) AS part
    ),
    summed AS (
      SELECT place, dimension, coalesce(sum(total_tokens) FILTER (WHERE is_attributed), 0)::BIGINT AS tokens, sum(total_tokens)::BIGINT AS all_tokens,
        CASE WHEN sum(request_count) IS NOT NULL THEN coalesce(sum(request_count) FILTER (WHERE is_attributed), 0)::BIGINT END AS requests,
        sum(request_count)::BIGINT AS all_requests,
        CASE WHEN sum(estimated_cost) IS NOT NULL THEN coalesce(sum(estimated_cost) FILTER (WHERE is_attributed), 0) END AS cost,
        sum(estimated_cost) AS all_cost,
        coalesce(sum(record_count) FILTER (WHERE is_attributed), 0)::BIGINT AS records, sum(record_count)::BIGINT AS all_records
      FROM attributed
      GROUP BY place, dimension
    )
    SELECT known.dimension, coalesce(tokens, 0), coalesce(all_tokens, 0), tokens / nullif(all_tokens, 0)::DOUBLE PRECISION * 100,
      CASE WHEN all_records IS NULL THEN 0 ELSE requests END, CASE WHEN all_records IS NULL THEN 0 ELSE all_requests END,
      requests / nullif(all_requests, 0)::DOUBLE PRECISION * 100,
      CASE WHEN all_records IS NULL THEN 0 ELSE cost END, CASE WHEN all_records IS NULL THEN 0 ELSE all_cost END,
      (cost / nullif(all_cost, 0) * 100)::DOUBLE PRECISION, coalesce(records, 0), coalesce(all_records, 0),
      records / nullif(all_records, 0)::DOUBLE PRECISION * 100, $1
    FROM unnest(ARRAY['team', 'project', 'cost_center', 'feature', 'user', 'environment', 'api_key']) WITH ORDINALITY AS known (dimension, place)
    LEFT JOIN summed ON summed.dimension = known.dimension
    ORDER BY known.place
  $sql$,
    marts.usage_parts('usage_rollup', p_org_id, p_start, p_end, 'team_id, project_id, cost_center_id, feature, environment, ' || v_measures),
    marts.usage_parts('usage_by_user', p_org_id, p_start, p_end, 'user_id, ' || v_measures),
    marts.usage_parts('usage_by_api_key', p_org_id, p_start, p_end, 'api_key_id, ' || v_measures))
  USING marts.usage_currency(p_org_id);
END
$$;

-- The last p_minutes before p_until, from minute records of the authoritative sources as they are now, built or not.
CREATE OR REPLACE FUNCTION marts.get_current_usage_rate(p_org_id UUID, p_minutes INTEGER DEFAULT 60, p_until TIMESTAMPTZ DEFAULT now()) RETURNS TABLE (
  period_start TIMESTAMPTZ, period_end TIMESTAMPTZ, total_tokens BIGINT, requests BIGINT, errors BIGINT, estimated_cost NUMERIC,
  tokens_per_minute DOUBLE PRECISION, requests_per_minute DOUBLE PRECISION, cost_per_hour NUMERIC, error_rate DOUBLE PRECISION,
  unpriced_tokens BIGINT, last_usage_at TIMESTAMPTZ, record_count BIGINT, currency TEXT
)
LANGUAGE plpgsql STABLE AS
$$
DECLARE
  v_currency TEXT := marts.usage_currency(p_org_id);
  v_start TIMESTAMPTZ := p_until - make_interval(mins => p_minutes);
BEGIN
  IF p_org_id IS NULL OR p_until IS NULL OR (p_minutes > 0) IS NOT TRUE THEN
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format(
      'p_org_id is %s, p_minutes %s, p_until %s; give an organisation, 1 minute or more, and a time.',
      coalesce(p_org_id::TEXT, 'NULL'), coalesce(p_minutes::TEXT, 'NULL'), coalesce(p_until::TEXT, 'NULL'));
  END IF;
  RETURN QUERY EXECUTE format($sql$
    SELECT $1, $2, coalesce(sum(record.total_tokens), 0)::BIGINT, CASE WHEN count(*) = 0 THEN 0 ELSE sum(record.request_count) END::BIGINT,
      CASE WHEN count(*) = 0 THEN 0 ELSE sum(record.error_count) END::BIGINT,
      CASE WHEN count(*) = 0 THEN 0 ELSE sum(record.estimated_cost) FILTER (WHERE record.currency = $4) END,
      coalesce(sum(record.total_tokens), 0)::DOUBLE PRECISION / $3,
      CASE WHEN count(*) = 0 THEN 0 ELSE sum(record.request_count) END::DOUBLE PRECISION / $3,
      round(CASE WHEN count(*) = 0 THEN 0 ELSE sum(record.estimated_cost) FILTER (WHERE record.currency = $4) END * 60 / $3, 12),
      sum(record.error_count)::DOUBLE PRECISION / nullif(sum(record.request_count) FILTER (WHERE record.error_count IS NOT NULL), 0) * 100,
      coalesce(sum(record.total_tokens) FILTER (WHERE record.cost_basis = 'unpriced'), 0)::BIGINT, max(record.timestamp), count(*), $4
    FROM staging.stg_app__provider_connections AS connection
    JOIN intermediate.int_usage_authority AS authority
      ON authority.org_id = connection.org_id AND authority.provider = connection.provider AND authority.source = connection.source
    CROSS JOIN LATERAL (
      SELECT * FROM raw.usage_records AS found
      WHERE found.provider_connection_id = connection.provider_connection_id AND found.granularity = '1m'
        AND found.timestamp >= %1$s AND found.timestamp < %2$s
    ) AS record
    WHERE connection.org_id = %3$L
  $sql$, marts.utc_literal(v_start), marts.utc_literal(p_until), p_org_id)
  USING v_start, p_until, p_minutes, v_currency;
END
$$;

-- Each user, model, feature and API key once in the period (correction 7); NULL where there is usage and no source names any.
CREATE OR REPLACE FUNCTION marts.get_distinct_counts(p_org_id UUID, p_start TIMESTAMPTZ, p_end TIMESTAMPTZ) RETURNS TABLE (
  unique_users BIGINT, unique_models BIGINT, unique_features BIGINT, unique_api_keys BIGINT
)
LANGUAGE plpgsql STABLE AS
$$
DECLARE
  v_models BIGINT := marts.count_active(p_org_id, p_start, p_end, 'model');
BEGIN
  unique_models := v_models;
  unique_users := marts.count_active(p_org_id, p_start, p_end, 'user');
  unique_features := marts.count_active(p_org_id, p_start, p_end, 'feature');
  unique_api_keys := marts.count_active(p_org_id, p_start, p_end, 'api_key');
  IF v_models > 0 THEN
    unique_users := nullif(unique_users, 0);
    unique_features := nullif(unique_features, 0);
    unique_api_keys := nullif(unique_api_keys, 0);
  END IF;
  RETURN NEXT;
END
$$;
