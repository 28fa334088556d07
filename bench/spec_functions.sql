-- The specification's own functions of section 2.7, as written there (tests and benchmarks run them against ours).

-- ============================================
-- GET USAGE SUMMARY
-- ============================================
CREATE OR REPLACE FUNCTION get_usage_summary(
  p_org_id UUID,
  p_start_date TIMESTAMPTZ,
  p_end_date TIMESTAMPTZ,
  p_provider TEXT DEFAULT NULL,
  p_model TEXT DEFAULT NULL,
  p_team_id UUID DEFAULT NULL,
  p_project_id UUID DEFAULT NULL,
  p_feature TEXT DEFAULT NULL,
  p_environment TEXT DEFAULT NULL
)
RETURNS TABLE (
  total_tokens BIGINT,
  input_tokens BIGINT,
  output_tokens BIGINT,
  cached_tokens BIGINT,
  total_requests INTEGER,
  success_requests INTEGER,
  error_requests INTEGER,
  avg_latency_ms INTEGER,
  p50_latency_ms INTEGER,
  p95_latency_ms INTEGER,
  p99_latency_ms INTEGER,
  error_rate FLOAT,
  cache_hit_rate FLOAT,
  tokens_per_request FLOAT,
  unique_models INTEGER,
  unique_users INTEGER,
  estimated_cost DECIMAL
)
LANGUAGE plpgsql
AS $$
BEGIN
  RETURN QUERY
  SELECT
    COALESCE(SUM(ur.total_tokens), 0)::BIGINT,
    COALESCE(SUM(ur.input_tokens), 0)::BIGINT,
    COALESCE(SUM(ur.output_tokens), 0)::BIGINT,
    COALESCE(SUM(ur.cached_input_tokens), 0)::BIGINT,
    COALESCE(SUM(ur.request_count), 0)::INTEGER,
    COALESCE(SUM(ur.success_count), 0)::INTEGER,
    COALESCE(SUM(ur.error_count), 0)::INTEGER,
    CASE WHEN SUM(ur.request_count) > 0 
      THEN (SUM(ur.total_latency_ms) / SUM(ur.request_count))::INTEGER 
      ELSE NULL 
    END,
    PERCENTILE_CONT(0.50) WITHIN GROUP (ORDER BY ur.p50_latency_ms)::INTEGER,
    PERCENTILE_CONT(0.95) WITHIN GROUP (ORDER BY ur.p95_latency_ms)::INTEGER,
    PERCENTILE_CONT(0.99) WITHIN GROUP (ORDER BY ur.p99_latency_ms)::INTEGER,
    CASE WHEN SUM(ur.request_count) > 0 
      THEN (SUM(ur.error_count)::FLOAT / SUM(ur.request_count) * 100)
      ELSE 0 
    END,
    CASE WHEN SUM(ur.input_tokens) > 0 
      THEN (SUM(ur.cached_input_tokens)::FLOAT / SUM(ur.input_tokens) * 100)
      ELSE 0 
    END,
    CASE WHEN SUM(ur.request_count) > 0 
      THEN (SUM(ur.total_tokens)::FLOAT / SUM(ur.request_count))
      ELSE 0 
    END,
    COUNT(DISTINCT ur.model)::INTEGER,
    COALESCE(SUM(ur.unique_user_count), 0)::INTEGER,
    COALESCE(SUM(ur.estimated_cost), 0)::DECIMAL
  FROM usage_records ur
  WHERE ur.org_id = p_org_id
    AND ur.timestamp >= p_start_date
    AND ur.timestamp < p_end_date
    AND (p_provider IS NULL OR ur.provider = p_provider)
    AND (p_model IS NULL OR ur.model = p_model)
    AND (p_team_id IS NULL OR ur.team_id = p_team_id)
    AND (p_project_id IS NULL OR ur.project_id = p_project_id)
    AND (p_feature IS NULL OR ur.feature = p_feature)
    AND (p_environment IS NULL OR ur.environment = p_environment);
END;
$$;

-- ============================================
-- GET USAGE TREND
-- ============================================
CREATE OR REPLACE FUNCTION get_usage_trend(
  p_org_id UUID,
  p_start_date TIMESTAMPTZ,
  p_end_date TIMESTAMPTZ,
  p_granularity TEXT DEFAULT 'day', -- 'hour', 'day', 'week', 'month'
  p_metric TEXT DEFAULT 'tokens' -- 'tokens', 'requests', 'cost'
)
RETURNS TABLE (
  time_bucket TIMESTAMPTZ,
  value BIGINT,
  input_tokens BIGINT,
  output_tokens BIGINT,
  requests INTEGER,
  error_rate FLOAT
)
LANGUAGE plpgsql
AS $$
DECLARE
  v_interval TEXT;
BEGIN
  -- Determine the interval based on granularity
  v_interval := CASE p_granularity
    WHEN 'hour' THEN '1 hour'
    WHEN 'day' THEN '1 day'
    WHEN 'week' THEN '1 week'
    WHEN 'month' THEN '1 month'
    ELSE '1 day'
  END;
  
  RETURN QUERY EXECUTE format('
    SELECT
      date_trunc(%L, timestamp) AS time_bucket,
      CASE %L
        WHEN ''tokens'' THEN SUM(total_tokens)
        WHEN ''requests'' THEN SUM(request_count)::BIGINT
        WHEN ''cost'' THEN (SUM(estimated_cost) * 1000000)::BIGINT -- Microdollars for integer
        ELSE SUM(total_tokens)
      END AS value,
      SUM(input_tokens)::BIGINT,
      SUM(output_tokens)::BIGINT,
      SUM(request_count)::INTEGER,
      CASE WHEN SUM(request_count) > 0 
        THEN (SUM(error_count)::FLOAT / SUM(request_count) * 100)
        ELSE 0 
      END AS error_rate
    FROM usage_records
    WHERE org_id = %L
      AND timestamp >= %L
      AND timestamp < %L
    GROUP BY date_trunc(%L, timestamp)
    ORDER BY time_bucket ASC',
    p_granularity, p_metric, p_org_id, p_start_date, p_end_date, p_granularity
  );
END;
$$;

-- ============================================
-- GET USAGE BREAKDOWN
-- ============================================
CREATE OR REPLACE FUNCTION get_usage_breakdown(
  p_org_id UUID,
  p_start_date TIMESTAMPTZ,
  p_end_date TIMESTAMPTZ,
  p_dimension TEXT, -- 'provider', 'model', 'team', 'project', 'feature', 'user', 'request_type'
  p_limit INTEGER DEFAULT 10
)
RETURNS TABLE (
  dimension_value TEXT,
  total_tokens BIGINT,
  input_tokens BIGINT,
  output_tokens BIGINT,
  request_count INTEGER,
  error_count INTEGER,
  avg_latency_ms INTEGER,
  estimated_cost DECIMAL,
  percentage FLOAT
)
LANGUAGE plpgsql
AS $$
DECLARE
  v_total_tokens BIGINT;
BEGIN
  -- Get total for percentage calculation
  SELECT COALESCE(SUM(ur.total_tokens), 1)
  INTO v_total_tokens
  FROM usage_records ur
  WHERE ur.org_id = p_org_id
    AND ur.timestamp >= p_start_date
    AND ur.timestamp < p_end_date;
  
  RETURN QUERY EXECUTE format('
    SELECT
      COALESCE(%I::TEXT, ''Unknown'') AS dimension_value,
      SUM(total_tokens)::BIGINT,
      SUM(input_tokens)::BIGINT,
      SUM(output_tokens)::BIGINT,
      SUM(request_count)::INTEGER,
      SUM(error_count)::INTEGER,
      CASE WHEN SUM(request_count) > 0 
        THEN (SUM(total_latency_ms) / SUM(request_count))::INTEGER 
        ELSE NULL 
      END,
      SUM(estimated_cost)::DECIMAL,
      (SUM(total_tokens)::FLOAT / %L * 100)::FLOAT AS percentage
    FROM usage_records
    WHERE org_id = %L
      AND timestamp >= %L
      AND timestamp < %L
    GROUP BY %I
    ORDER BY SUM(total_tokens) DESC
    LIMIT %L',
    p_dimension, v_total_tokens, p_org_id, p_start_date, p_end_date, p_dimension, p_limit
  );
END;
$$;

-- ============================================
-- GET TOP USERS
-- ============================================
CREATE OR REPLACE FUNCTION get_top_users(
  p_org_id UUID,
  p_start_date DATE,
  p_end_date DATE,
  p_limit INTEGER DEFAULT 10,
  p_order_by TEXT DEFAULT 'tokens' -- 'tokens', 'requests', 'cost'
)
RETURNS TABLE (
  user_identifier TEXT,
  user_display_name TEXT,
  total_tokens BIGINT,
  request_count INTEGER,
  estimated_cost DECIMAL,
  model_usage JSONB,
  last_activity_at TIMESTAMPTZ
)
LANGUAGE plpgsql
AS $$
BEGIN
  RETURN QUERY EXECUTE format('
    SELECT
      ua.user_identifier,
      ua.user_display_name,
      SUM(ua.total_tokens)::BIGINT,
      SUM(ua.request_count)::INTEGER,
      SUM(ua.estimated_cost)::DECIMAL,
      jsonb_object_agg(
        COALESCE(key, ''unknown''),
        value
      ) FILTER (WHERE key IS NOT NULL) AS model_usage,
      MAX(ua.last_activity_at) AS last_activity_at
    FROM user_activity ua,
         LATERAL jsonb_each(ua.model_usage) AS mu(key, value)
    WHERE ua.org_id = %L
      AND ua.activity_date >= %L
      AND ua.activity_date < %L
    GROUP BY ua.user_identifier, ua.user_display_name
    ORDER BY %s DESC
    LIMIT %L',
    p_org_id, p_start_date, p_end_date,
    CASE p_order_by
      WHEN 'tokens' THEN 'SUM(ua.total_tokens)'
      WHEN 'requests' THEN 'SUM(ua.request_count)'
      WHEN 'cost' THEN 'SUM(ua.estimated_cost)'
      ELSE 'SUM(ua.total_tokens)'
    END,
    p_limit
  );
END;
$$;
