-- What the stored functions share: which rows make up a period, what is summed, which dimensions there are.
-- plpgsql throughout: names of marts are looked up when a function runs, so dbt may build and replace them at any time.

-- A histogram as one number: bucket i's requests (less than 10^12 of them) are the 12 decimal digits from 12 * i on. sum() of
-- such numbers merges histograms, and is much faster than taking the JSON apart (docs/decisions/0010).
CREATE OR REPLACE FUNCTION raw.latency_counts(histogram JSONB) RETURNS NUMERIC
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS
$$ SELECT sum((value || 'e' || 12 * key::INTEGER)::NUMERIC) FROM jsonb_each_text(histogram) $$;

-- Percentiles of such a number, as raw.latency_percentile reads them from the JSON.
CREATE OR REPLACE FUNCTION raw.latency_percentiles(counts NUMERIC, quantiles FLOAT[]) RETURNS BIGINT[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS
$$
DECLARE
  digits BYTEA := convert_to(lpad(counts::TEXT, (length(counts::TEXT) + 11) / 12 * 12, '0'), 'UTF8');
  last_bucket INTEGER := octet_length(digits) / 12 - 1;
  first_bucket INTEGER := last_bucket - octet_length(rtrim(convert_from(digits, 'UTF8'), '0')::BYTEA) / 12;
  reached BIGINT[] := '{}';
  total BIGINT := 0;
  found BIGINT[] := '{}';
  quantile FLOAT;
  wanted BIGINT;
  place INTEGER;
BEGIN
  first_bucket := greatest(first_bucket, 0);
  FOR bucket IN first_bucket..last_bucket LOOP
    total := total + convert_from(substring(digits FROM (last_bucket - bucket) * 12 + 1 FOR 12), 'UTF8')::BIGINT;
    reached := reached || total;
  END LOOP;
  FOREACH quantile IN ARRAY quantiles LOOP
    wanted := greatest(ceil(quantile * total), 1);
    place := width_bucket(wanted - 1, reached);
    found := found || CASE WHEN total > 0 THEN round(2 * power(1.02, first_bucket + place) / 2.02)::BIGINT END;
  END LOOP;
  RETURN found;
END
$$;

-- A daily rollup that dbt built before it had this column gets it now, so that it need not be built anew.
DO $$
BEGIN
  IF to_regclass('marts.daily_usage_rollup') IS NOT NULL THEN
    ALTER TABLE marts.daily_usage_rollup ADD COLUMN IF NOT EXISTS latency_counts NUMERIC;
    UPDATE marts.daily_usage_rollup SET latency_counts = raw.latency_counts(latency_histogram) WHERE latency_histogram IS NOT NULL;
  END IF;
END
$$;

-- A moment as SQL text, whatever the session's time zone and date style are.
CREATE OR REPLACE FUNCTION marts.utc_literal(p_moment TIMESTAMPTZ) RETURNS TEXT
LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT to_char(p_moment AT TIME ZONE 'UTC', '"TIMESTAMPTZ ''"YYYY-MM-DD HH24:MI:SS.US"Z''"') $$;

-- The column that a dimension of the specification (table 1.5, in either spelling) is in.
CREATE OR REPLACE FUNCTION marts.usage_dimension(p_dimension TEXT) RETURNS TEXT
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS
$$
DECLARE
  v_column TEXT := CASE
    WHEN p_dimension IN ('provider', 'model', 'feature', 'environment') THEN p_dimension
    WHEN p_dimension IN ('modelFamily', 'model_family') THEN 'model_family'
    WHEN p_dimension IN ('team', 'teamId', 'team_id') THEN 'team_id'
    WHEN p_dimension IN ('project', 'projectId', 'project_id') THEN 'project_id'
    WHEN p_dimension IN ('costCenter', 'cost_center', 'costCenterId', 'cost_center_id') THEN 'cost_center_id'
    WHEN p_dimension IN ('user', 'userId', 'user_id', 'user_identifier') THEN 'user_id'
    WHEN p_dimension IN ('apiKey', 'api_key', 'apiKeyId', 'api_key_id') THEN 'api_key_id'
    WHEN p_dimension IN ('requestType', 'request_type') THEN 'request_type'
    WHEN p_dimension IN ('serviceType', 'service_type') THEN 'service_type'
  END;
BEGIN
  IF v_column IS NULL THEN
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format(
      'The dimension is %s; it must be one of provider, model, model_family, team, project, cost_center, feature, '
      'environment, user, api_key, request_type, service_type.', coalesce(quote_literal(p_dimension), 'NULL'));
  END IF;
  RETURN v_column;
END
$$;

-- Which marts hold all of these dimensions; the records where no mart does.
CREATE OR REPLACE FUNCTION marts.usage_relation(p_columns TEXT[]) RETURNS TEXT
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$
  SELECT CASE
    WHEN p_columns <@ ARRAY['provider'] THEN 'usage_totals'
    WHEN NOT p_columns && ARRAY['user_id', 'api_key_id'] THEN 'usage_rollup'
    WHEN p_columns <@ ARRAY['provider', 'user_id'] THEN 'usage_by_user'
    WHEN p_columns <@ ARRAY['provider', 'api_key_id'] THEN 'usage_by_api_key'
    ELSE 'records'
  END
$$;

-- SQL for the label of a dimension's value: a name where people or the provider gave one.
CREATE OR REPLACE FUNCTION marts.usage_label(p_org_id UUID, p_column TEXT, p_value TEXT) RETURNS TEXT
LANGUAGE sql STABLE PARALLEL SAFE AS
$$
  SELECT format(CASE p_column
    WHEN 'team_id' THEN '(SELECT named.name FROM app.teams AS named WHERE named.id = %2$s::UUID)'
    WHEN 'project_id' THEN '(SELECT named.name FROM app.projects AS named WHERE named.id = %2$s::UUID)'
    WHEN 'cost_center_id' THEN '(SELECT named.name FROM app.cost_centers AS named WHERE named.id = %2$s::UUID)'
    WHEN 'user_id' THEN
      '(SELECT named.user_display_name FROM intermediate.int_user_names AS named '
      'WHERE named.org_id = %1$L AND named.user_identifier = %2$s)'
    WHEN 'api_key_id' THEN
      '(SELECT named.entity_name FROM staging.stg_raw__provider_entities AS named WHERE named.org_id = %1$L '
      'AND named.entity_kind = ''api_key'' AND named.entity_id = %2$s AND named.entity_name IS NOT NULL '
      'ORDER BY named.seen_at DESC, named.provider_connection_id LIMIT 1)'
    ELSE 'NULL::TEXT'
  END, p_org_id, p_value)
$$;

-- SQL for the records that count with a timestamp in [p_start, p_end), at the widths named, in the marts' columns: the
-- authoritative source (correction 11) at the finest complete width of the connection's day (correction 9).
CREATE OR REPLACE FUNCTION marts.counted_records(p_org_id UUID, p_start TIMESTAMPTZ, p_end TIMESTAMPTZ, p_widths TEXT) RETURNS TEXT
LANGUAGE sql STABLE PARALLEL SAFE AS
$$
  SELECT format($sql$
    SELECT record.timestamp AT TIME ZONE 'UTC' AS moment, record.provider, record.model, record.model_family, record.request_type,
      record.service_type, record.team_id, record.project_id, record.cost_center_id, record.feature, record.environment,
      record.currency, record.api_key_id, record.user_ids,
      CASE WHEN cardinality(record.user_ids) = 1 THEN record.user_ids[1] END AS user_id,
      record.input_tokens, record.output_tokens, record.total_tokens, record.cached_input_tokens, record.cache_creation_tokens,
      record.request_count, record.success_count, record.error_count, record.total_latency_ms,
      CASE WHEN record.total_latency_ms IS NOT NULL THEN record.request_count END AS latency_request_count,
      record.min_latency_ms, record.max_latency_ms, record.p50_latency_ms, record.p95_latency_ms, record.p99_latency_ms,
      record.latency_histogram IS NULL AND record.p50_latency_ms IS NOT NULL AS latency_is_approximate,
      NULL::NUMERIC AS latency_counts, record.latency_histogram AS latency_entries,
      record.estimated_cost,
      CASE WHEN record.cost_basis = 'unpriced' THEN record.total_tokens ELSE 0 END AS unpriced_tokens, 1 AS record_count
    FROM intermediate.int_connection_days AS connection_day
    JOIN staging.stg_app__provider_connections AS connection
      ON connection.provider_connection_id = connection_day.provider_connection_id
    JOIN intermediate.int_usage_authority AS authority
      ON authority.org_id = connection.org_id AND authority.provider = connection.provider AND authority.source = connection.source
    CROSS JOIN LATERAL (
      SELECT * FROM raw.usage_records AS found
      WHERE found.provider_connection_id = connection_day.provider_connection_id
        AND found.timestamp >= connection_day.day_start AND found.timestamp < connection_day.day_start + interval '24 hours'
        AND found.timestamp >= %2$s AND found.timestamp < %3$s AND found.granularity = connection_day.granularity
    ) AS record
    WHERE connection_day.org_id = %1$L AND connection_day.granularity IN (%4$s)
      AND connection_day.day_start > %2$s - interval '24 hours' AND connection_day.day_start < %3$s
  $sql$, p_org_id, marts.utc_literal(p_start), marts.utc_literal(p_end), p_widths)
$$;

-- SQL for all rows whose sums are the usage of [p_start, p_end): whole UTC days from the daily mart, the hours at the
-- edges from the hourly one, and records only inside an hour that an edge cuts. A day record is in no hour: it counts
-- where its timestamp lies. `p_width` 'hour' or 'minute' leaves out what is only known per day (or hour), for buckets
-- that narrow. `p_relation`: usage_totals, usage_rollup, usage_by_user, usage_by_api_key or records; `moment` is each row's
-- time, UTC without a zone. Of usage_rollup a row has its latency as `latency_counts` or as `latency_entries`, see usage_latency.
CREATE OR REPLACE FUNCTION marts.usage_parts(
  p_relation TEXT, p_org_id UUID, p_start TIMESTAMPTZ, p_end TIMESTAMPTZ, p_columns TEXT,
  p_condition TEXT DEFAULT 'true', p_width TEXT DEFAULT 'day'
) RETURNS TEXT
LANGUAGE plpgsql STABLE AS
$$
DECLARE
  v_start TIMESTAMPTZ := greatest(p_start, '0001-01-01 00:00Z');
  v_end TIMESTAMPTZ := least(p_end, '9999-12-31 00:00Z');
  v_first_day TIMESTAMPTZ := date_trunc('day', v_start + interval '23:59:59.999999', 'UTC');
  v_last_day TIMESTAMPTZ := date_trunc('day', v_end, 'UTC');
  v_edges TSTZRANGE[];
  v_edge TSTZRANGE;
  v_first_hour TIMESTAMPTZ;
  v_last_hour TIMESTAMPTZ;
  v_parts TEXT[] := '{}';
  v_daily TEXT := CASE p_relation WHEN 'usage_totals' THEN 'usage_rollup' ELSE p_relation END;
  -- Totals that no build has made yet: the rollup has the same sums.
  v_hourly TEXT := CASE WHEN p_relation = 'usage_totals' AND to_regclass('marts.hourly_usage_totals') IS NULL THEN 'usage_rollup' ELSE p_relation END;
BEGIN
  IF p_org_id IS NULL OR p_start IS NULL OR p_end IS NULL THEN
    RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
      MESSAGE = 'The organisation, the start or the end is NULL; give all three: usage is of one organisation in [start, end).';
  END IF;
  IF to_regclass('marts.daily_usage_rollup') IS NULL THEN
    RAISE EXCEPTION USING ERRCODE = 'undefined_table',
      MESSAGE = 'Nothing has been built yet; run `tokentra sync` or `tokentra import`, then `tokentra build`.';
  END IF;
  IF p_width = 'day' AND p_relation <> 'records' AND v_first_day < v_last_day THEN
    v_parts := v_parts || format(
      $sql$SELECT mart.date::TIMESTAMP AS moment, mart.*, NULL::JSONB AS latency_entries FROM marts.daily_%s AS mart
      WHERE mart.org_id = %L AND mart.date >= DATE '%s' AND mart.date < DATE '%s'$sql$,
      v_daily, p_org_id, to_char(v_first_day AT TIME ZONE 'UTC', 'YYYY-MM-DD'), to_char(v_last_day AT TIME ZONE 'UTC', 'YYYY-MM-DD'));
    v_edges := ARRAY[tstzrange(v_start, v_first_day), tstzrange(v_last_day, v_end)];
  ELSE
    v_edges := ARRAY[tstzrange(v_start, greatest(v_start, v_end))];
  END IF;
  FOREACH v_edge IN ARRAY v_edges LOOP
    CONTINUE WHEN isempty(v_edge);
    IF p_relation = 'records' OR p_width = 'minute' THEN
      v_parts := v_parts || marts.counted_records(p_org_id, lower(v_edge), upper(v_edge),
        CASE p_width WHEN 'minute' THEN $w$'1m'$w$ WHEN 'hour' THEN $w$'1m', '1h'$w$ ELSE $w$'1m', '1h', '1d'$w$ END);
      CONTINUE;
    END IF;
    IF p_width = 'day' THEN
      v_parts := v_parts || marts.counted_records(p_org_id, lower(v_edge), upper(v_edge), $w$'1d'$w$);
    END IF;
    v_first_hour := date_trunc('hour', lower(v_edge) + interval '59:59.999999', 'UTC');
    v_last_hour := date_trunc('hour', upper(v_edge), 'UTC');
    IF v_first_hour >= v_last_hour THEN
      v_parts := v_parts || marts.counted_records(p_org_id, lower(v_edge), upper(v_edge), $w$'1m', '1h'$w$);
      CONTINUE;
    END IF;
    v_parts := v_parts || format(
      'SELECT mart.hour AT TIME ZONE ''UTC'' AS moment, mart.*%s FROM marts.hourly_%s AS mart WHERE mart.org_id = %L AND mart.hour >= %s AND mart.hour < %s',
      CASE p_relation WHEN 'usage_rollup' THEN ', NULL::NUMERIC AS latency_counts, mart.latency_histogram AS latency_entries' END,
      v_hourly, p_org_id, marts.utc_literal(v_first_hour), marts.utc_literal(v_last_hour));
    IF lower(v_edge) < v_first_hour THEN
      v_parts := v_parts || marts.counted_records(p_org_id, lower(v_edge), v_first_hour, $w$'1m', '1h'$w$);
    END IF;
    IF v_last_hour < upper(v_edge) THEN
      v_parts := v_parts || marts.counted_records(p_org_id, v_last_hour, upper(v_edge), $w$'1m', '1h'$w$);
    END IF;
  END LOOP;
  IF v_parts = '{}' THEN
    v_parts := ARRAY[marts.counted_records(p_org_id, v_start, v_start, $w$'1m'$w$)];
  END IF;
  RETURN (
    SELECT string_agg(format('SELECT %s FROM (%s) AS part WHERE %s', p_columns, part.statement, p_condition), ' UNION ALL ' ORDER BY part.place)
    FROM unnest(v_parts) WITH ORDINALITY AS part (statement, place)
  );
END
$$;

-- The columns of a part that sums are made of, and the sums. A measure that nothing knows stays NULL, and a rate divides
-- by those rows only that know it: requests of a source that gives no errors are no requests without errors.
CREATE OR REPLACE FUNCTION marts.usage_measures() RETURNS TEXT
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$
  SELECT 'input_tokens, output_tokens, total_tokens, cached_input_tokens, request_count, error_count, total_latency_ms, '
    'latency_request_count, currency, estimated_cost, unpriced_tokens, record_count'
$$;

CREATE OR REPLACE FUNCTION marts.usage_sums(p_org_id UUID) RETURNS TEXT
LANGUAGE plpgsql STABLE AS
$$
BEGIN
  RETURN format($sql$
    sum(input_tokens)::BIGINT AS input_tokens, sum(output_tokens)::BIGINT AS output_tokens,
    sum(total_tokens)::BIGINT AS total_tokens, sum(cached_input_tokens)::BIGINT AS cached_tokens,
    sum(request_count)::BIGINT AS request_count, sum(error_count)::BIGINT AS error_count,
    sum(total_latency_ms)::BIGINT AS total_latency_ms, sum(latency_request_count)::BIGINT AS latency_request_count,
    sum(estimated_cost) FILTER (WHERE currency = %1$L) AS estimated_cost, sum(unpriced_tokens)::BIGINT AS unpriced_tokens,
    sum(record_count)::BIGINT AS record_count,
    sum(request_count) FILTER (WHERE error_count IS NOT NULL)::BIGINT AS requests_with_errors_known
  $sql$, marts.usage_currency(p_org_id));
END
$$;

-- Further sums, and what rates divide by: of parts that have cache_creation_tokens and success_count beside the measures.
CREATE OR REPLACE FUNCTION marts.usage_bases() RETURNS TEXT
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$
  SELECT 'sum(cache_creation_tokens)::BIGINT AS cache_creation_tokens, sum(success_count)::BIGINT AS success_count, '
    'sum(input_tokens) FILTER (WHERE cached_input_tokens IS NOT NULL)::BIGINT AS input_with_cache_known, '
    'sum(total_tokens) FILTER (WHERE request_count IS NOT NULL)::BIGINT AS tokens_with_requests_known'
$$;

-- SQL that keeps only usage on the path: {"model": "gpt-4o"}; a JSON null, or the word Unknown, is usage without a value.
CREATE OR REPLACE FUNCTION marts.usage_condition(p_path JSONB) RETURNS TEXT
LANGUAGE plpgsql IMMUTABLE AS
$$
BEGIN
  IF (jsonb_typeof(p_path) = 'object') IS NOT TRUE THEN
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
      MESSAGE = format('p_path is %s; it must be an object of dimensions and values, e.g. {"model": "gpt-4o"}.', coalesce(p_path::TEXT, 'NULL'));
  END IF;
  RETURN coalesce((
    SELECT string_agg(format(
      CASE WHEN step.value IS NULL THEN '%1$I IS NULL'
        WHEN step.value = 'Unknown' THEN '(%1$I::TEXT = %2$L OR %1$I IS NULL)'
        ELSE '%1$I = %2$L' END, marts.usage_dimension(step.key), step.value), ' AND ')
    FROM jsonb_each_text(p_path) AS step
  ), 'true');
END
$$;

-- The organisation's reporting currency: money in another is never added to it.
CREATE OR REPLACE FUNCTION marts.usage_currency(p_org_id UUID) RETURNS TEXT
LANGUAGE plpgsql STABLE AS
$$ BEGIN RETURN (SELECT organization.currency FROM staging.stg_app__organizations AS organization WHERE organization.org_id = p_org_id); END $$;

CREATE OR REPLACE FUNCTION marts.require_limit(p_limit INTEGER) RETURNS VOID
LANGUAGE plpgsql IMMUTABLE AS
$$
BEGIN
  IF p_limit < 0 THEN
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
      MESSAGE = format('p_limit is %s; it must be 0 or more, or NULL for all.', p_limit);
  END IF;
END
$$;

-- The sums of sums, under the same names.
CREATE OR REPLACE FUNCTION marts.usage_totals() RETURNS TEXT
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$
  SELECT string_agg(format('sum(%1$s)::%2$s AS %1$s', name, CASE name WHEN 'estimated_cost' THEN 'NUMERIC' ELSE 'BIGINT' END), ', ')
  FROM unnest(ARRAY['input_tokens', 'output_tokens', 'total_tokens', 'cached_tokens', 'request_count', 'error_count',
    'total_latency_ms', 'latency_request_count', 'estimated_cost', 'unpriced_tokens', 'record_count', 'requests_with_errors_known']) AS name
$$;

-- Users, models, features or API keys with activity in [p_start, p_end), each counted once (correction 7): sets of whole
-- days, and what the hours and records at the edges name. 0 also where no source names any.
CREATE OR REPLACE FUNCTION marts.count_active(
  p_org_id UUID, p_start TIMESTAMPTZ, p_end TIMESTAMPTZ, p_entity_kind TEXT, p_provider TEXT DEFAULT NULL
) RETURNS BIGINT
LANGUAGE plpgsql STABLE AS
$$
DECLARE
  v_first_day TIMESTAMPTZ := date_trunc('day', greatest(p_start, '0001-01-01 00:00Z') + interval '23:59:59.999999', 'UTC');
  v_last_day TIMESTAMPTZ := date_trunc('day', least(p_end, '9999-12-31 00:00Z'), 'UTC');
  v_relation TEXT := CASE p_entity_kind WHEN 'api_key' THEN 'usage_by_api_key' ELSE 'usage_rollup' END;
  v_column TEXT := CASE p_entity_kind
    WHEN 'user' THEN 'unnest(user_ids) AS entity_id' WHEN 'api_key' THEN 'api_key_id AS entity_id' ELSE p_entity_kind || ' AS entity_id' END;
  v_condition TEXT := CASE WHEN p_provider IS NULL THEN 'true' ELSE format('provider = %L', p_provider) END;
  v_sets TEXT;
  v_count BIGINT;
BEGIN
  IF v_first_day < v_last_day THEN
    v_sets := concat_ws(' UNION ALL ',
      format('SELECT entity_id FROM marts.daily_active_entities WHERE org_id = %L AND entity_kind = %L AND date >= DATE %L AND date < DATE %L AND %s',
        p_org_id, p_entity_kind, to_char(v_first_day AT TIME ZONE 'UTC', 'YYYY-MM-DD'), to_char(v_last_day AT TIME ZONE 'UTC', 'YYYY-MM-DD'), v_condition),
      CASE WHEN p_start < v_first_day THEN marts.usage_parts(v_relation, p_org_id, p_start, v_first_day, v_column, v_condition) END,
      CASE WHEN v_last_day < p_end THEN marts.usage_parts(v_relation, p_org_id, v_last_day, p_end, v_column, v_condition) END);
  ELSE
    v_sets := marts.usage_parts(v_relation, p_org_id, p_start, p_end, v_column, v_condition);
  END IF;
  EXECUTE format('SELECT count(*) FROM (SELECT DISTINCT entity_id FROM (%s) AS active WHERE entity_id IS NOT NULL) AS counted', v_sets) INTO v_count;
  RETURN v_count;
END
$$;
