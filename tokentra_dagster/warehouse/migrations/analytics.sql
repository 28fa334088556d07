-- What the analyses say, one row per figure (docs/analytics.md). Written by the analytics assets; a day's results of one
-- organisation, analysis and window replace what stood there.

-- A figure of an organisation in a period, of everything or of one value of a dimension, over the period or of one bucket in it.
CREATE TABLE analytics.metrics (
  org_id UUID NOT NULL,
  analysis TEXT NOT NULL,
  "window" TEXT NOT NULL,
  period_start TIMESTAMPTZ NOT NULL,
  period_end TIMESTAMPTZ NOT NULL,
  dimension TEXT,
  dimension_value TEXT,
  moment TIMESTAMPTZ,
  metric TEXT NOT NULL,
  value NUMERIC,
  currency TEXT NOT NULL,
  CONSTRAINT valid_period CHECK (period_start < period_end),
  CONSTRAINT valid_window CHECK ("window" IN ('7d', '30d', '90d', 'month'))
);
CREATE INDEX ON analytics.metrics (org_id, analysis, "window", period_end);
COMMENT ON TABLE analytics.metrics IS 'Results of the analyses, a row per figure: organisation, analysis, window, period [period_start, period_end), dimension and value, bucket, metric';
COMMENT ON COLUMN analytics.metrics.dimension IS 'NULL: the figure is of everything';
COMMENT ON COLUMN analytics.metrics.dimension_value IS 'NULL with a dimension: usage without a value';
COMMENT ON COLUMN analytics.metrics.moment IS 'Start of the bucket that the figure is of, UTC; NULL: the whole period';
COMMENT ON COLUMN analytics.metrics.value IS 'NULL is unknown. Money in currency, tokens and requests as counts, rates in percent, latency in milliseconds';
COMMENT ON COLUMN analytics.metrics.currency IS 'The organisation''s currency, for metrics that are money';

CREATE TABLE analytics.insights (
  org_id UUID NOT NULL,
  analysis TEXT NOT NULL,
  "window" TEXT NOT NULL,
  period_start TIMESTAMPTZ NOT NULL,
  period_end TIMESTAMPTZ NOT NULL,
  kind TEXT NOT NULL,
  severity TEXT NOT NULL,
  title TEXT NOT NULL,
  description TEXT NOT NULL,
  metric TEXT,
  dimension TEXT,
  dimension_value TEXT,
  impact_tokens NUMERIC,
  impact_pct DOUBLE PRECISION,
  CONSTRAINT valid_severity CHECK (severity IN ('info', 'warning', 'critical'))
);
CREATE INDEX ON analytics.insights (org_id, analysis, "window", period_end);
COMMENT ON TABLE analytics.insights IS 'What a person should know about a period, in a sentence';

CREATE TABLE analytics.recommendations (
  org_id UUID NOT NULL,
  analysis TEXT NOT NULL,
  "window" TEXT NOT NULL,
  period_start TIMESTAMPTZ NOT NULL,
  period_end TIMESTAMPTZ NOT NULL,
  category TEXT NOT NULL,
  priority TEXT NOT NULL,
  title TEXT NOT NULL,
  description TEXT NOT NULL,
  action TEXT NOT NULL,
  savings_low NUMERIC,
  savings_high NUMERIC,
  currency TEXT NOT NULL,
  assumptions TEXT,
  dimension TEXT,
  dimension_value TEXT,
  CONSTRAINT valid_priority CHECK (priority IN ('low', 'medium', 'high', 'critical')),
  CONSTRAINT savings_in_order CHECK (savings_low <= savings_high)
);
CREATE INDEX ON analytics.recommendations (org_id, analysis, "window", period_end);
COMMENT ON TABLE analytics.recommendations IS 'What to do, with what it would have saved over the period where usage and dated prices say so';
COMMENT ON COLUMN analytics.recommendations.assumptions IS 'What the savings rest on';

-- The whole result under the specification's own names (section 3 and the services' types), for programs.
CREATE TABLE analytics.documents (
  org_id UUID NOT NULL,
  analysis TEXT NOT NULL,
  "window" TEXT NOT NULL,
  period_start TIMESTAMPTZ NOT NULL,
  period_end TIMESTAMPTZ NOT NULL,
  document JSONB NOT NULL,
  computed_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  PRIMARY KEY (org_id, analysis, "window", period_end)
);
COMMENT ON TABLE analytics.documents IS 'The whole result of an analysis as one JSON document in the specification''s names';
