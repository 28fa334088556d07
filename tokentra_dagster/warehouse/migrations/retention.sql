-- Retention (design, "Scale"; specification 2.2 and 2.3; corrections 2 and 4; docs/decisions/0005).

-- From when on an organisation's records of a provider are complete. What is older has expired: rollups keep what they say of
-- it, builds never compute it anew (not even `--full-refresh`), and loads of it are refused. Whole UTC days; never moves back.
CREATE TABLE raw.retention_horizon (
  org_id UUID NOT NULL,
  provider TEXT NOT NULL,
  kept_from TIMESTAMPTZ NOT NULL,
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  PRIMARY KEY (org_id, provider)
);

-- The same for the rows of a rollup: those before this moment have expired. NULL: none has.
ALTER TABLE raw.model_progress ADD COLUMN rows_from TIMESTAMPTZ;

CREATE TABLE raw.retention_history (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  run_id TEXT,
  started_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  completed_at TIMESTAMPTZ,
  removed JSONB NOT NULL DEFAULT '[]',
  waits JSONB NOT NULL DEFAULT '[]'
);
COMMENT ON COLUMN raw.retention_history.removed IS 'What went: what, before which moment, how many rows';
COMMENT ON COLUMN raw.retention_history.waits IS 'What could have gone and did not, and why';
