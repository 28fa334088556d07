-- Metrics add latency histograms (correction 6) with `sum`, the name that MetricFlow writes. It is defined for this type only, so
-- that a sum over any other jsonb stays an error.
CREATE TYPE marts.latency_histogram AS (buckets JSONB);
COMMENT ON TYPE marts.latency_histogram IS 'Requests per latency bucket; bucket i holds (1.02^(i-1), 1.02^i] milliseconds';

CREATE FUNCTION marts.merged_latency_histogram(histograms marts.latency_histogram[]) RETURNS JSONB
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$
  SELECT jsonb_object_agg(bucket.number, bucket.requests)
  FROM (
    SELECT entry.key AS number, sum(entry.value::BIGINT) AS requests
    FROM unnest(histograms) AS one
    CROSS JOIN LATERAL jsonb_each_text(one.buckets) AS entry
    GROUP BY entry.key
  ) AS bucket
$$;

CREATE AGGREGATE marts.sum (marts.latency_histogram) (
  SFUNC = array_append,
  STYPE = marts.latency_histogram[],
  FINALFUNC = marts.merged_latency_histogram,
  INITCOND = '{}'
);
COMMENT ON AGGREGATE marts.sum (marts.latency_histogram)
IS 'The histogram of all requests; NULL where none of the histograms is known';
