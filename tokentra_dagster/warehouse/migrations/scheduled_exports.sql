-- Scheduled exports (specification section 12, corrections 40 and 41; docs/exports-scheduled.md, docs/decisions/0015).

-- What is to be exported when, and where it goes. When it is due next is derived from schedule and time zone, never stored.
CREATE TABLE app.scheduled_exports (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  org_id UUID NOT NULL REFERENCES app.organizations (id) ON DELETE CASCADE,
  name TEXT NOT NULL CHECK (name <> ''),
  schedule TEXT NOT NULL,
  time_zone TEXT,
  relative_period TEXT NOT NULL CHECK (relative_period IN ('last_day', 'last_week', 'last_month', 'last_quarter')),
  export_config JSONB NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(export_config) = 'object'),
  delivery_method TEXT NOT NULL CHECK (delivery_method IN ('download', 'email', 's3', 'webhook')),
  delivery_config JSONB NOT NULL CHECK (jsonb_typeof(delivery_config) = 'object'),
  wait_until_final BOOLEAN NOT NULL DEFAULT false,
  catch_up TEXT NOT NULL DEFAULT 'all' CHECK (catch_up IN ('all', 'latest')),
  enabled BOOLEAN NOT NULL DEFAULT true,
  due_since TIMESTAMPTZ NOT NULL DEFAULT now(),
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  UNIQUE (org_id, name)
);
COMMENT ON COLUMN app.scheduled_exports.schedule IS 'Cron, five fields, in the time zone';
COMMENT ON COLUMN app.scheduled_exports.time_zone IS 'Of the schedule and of the period; NULL: the organisation''s';
COMMENT ON COLUMN app.scheduled_exports.export_config IS 'The export''s request without organisation and period';
COMMENT ON COLUMN app.scheduled_exports.delivery_config IS 'Settings of the destination, recipients too; secrets only as references (env:NAME, file:PATH)';
COMMENT ON COLUMN app.scheduled_exports.due_since IS 'Due times after this count: since it was made, resumed, or its schedule changed';

-- One row per export and due time. The unique key is why it is run once, however many daemons look at the same time.
CREATE TABLE app.export_runs (
  id UUID PRIMARY KEY,
  org_id UUID NOT NULL REFERENCES app.organizations (id) ON DELETE CASCADE,
  export_id UUID NOT NULL REFERENCES app.scheduled_exports (id) ON DELETE CASCADE,
  due_at TIMESTAMPTZ NOT NULL,
  period_start TIMESTAMPTZ NOT NULL,
  period_end TIMESTAMPTZ NOT NULL,
  status TEXT NOT NULL DEFAULT 'waiting' CHECK (status IN ('waiting', 'failed', 'delivered', 'skipped')),
  attempts INTEGER NOT NULL DEFAULT 0,
  next_attempt_at TIMESTAMPTZ NOT NULL,
  error TEXT,
  written_at TIMESTAMPTZ,
  written_by_attempt INTEGER,
  manifest JSONB,
  files JSONB,
  delivered_at TIMESTAMPTZ,
  delivered_to TEXT,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  UNIQUE (export_id, due_at),
  CHECK (period_start < period_end),
  CHECK (num_nonnulls(written_at, written_by_attempt, manifest, files) IN (0, 4)),
  CHECK ((status = 'delivered') = (delivered_at IS NOT NULL))
);
CREATE INDEX export_runs_open ON app.export_runs (next_attempt_at) WHERE status IN ('waiting', 'failed');
COMMENT ON TABLE app.export_runs IS 'What became of each due time of a scheduled export';
COMMENT ON COLUMN app.export_runs.id IS 'Made of export and due time; the id of every message about it';
COMMENT ON COLUMN app.export_runs.status IS 'waiting: due, not delivered yet; failed: the last attempt failed, it is tried again; delivered; skipped: missed, and the export''s catch-up leaves it out';
COMMENT ON COLUMN app.export_runs.error IS 'Why it is not delivered yet, a sentence without secrets; of a delivered e-mail: who did not get it';
COMMENT ON COLUMN app.export_runs.files IS 'Name, size and SHA-256 of each staged file, written down before anything is delivered';

-- What happened, in order: rows are added and never changed. An attempt that has only "started" was killed.
CREATE TABLE app.export_attempts (
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  run_id UUID NOT NULL REFERENCES app.export_runs (id) ON DELETE CASCADE,
  attempt INTEGER NOT NULL,
  event TEXT NOT NULL CHECK (event IN ('started', 'written', 'delivered', 'failed')),
  happened_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
  started_by TEXT NOT NULL CHECK (started_by IN ('schedule', 'hand')),
  says TEXT NOT NULL DEFAULT ''
);
CREATE INDEX export_attempts_run ON app.export_attempts (run_id, id);
COMMENT ON COLUMN app.export_attempts.says IS 'The error, where it was delivered to, or why the file was written again: one sentence without secrets';

-- Access: readers see what became of their organisations' exports, without errors and addresses; the rest is the owner's alone.
CREATE FUNCTION app.apply_scheduled_export_access() RETURNS VOID
LANGUAGE plpgsql AS
$$
BEGIN
  EXECUTE format(
    'GRANT SELECT (id, org_id, export_id, due_at, period_start, period_end, status, attempts, written_at, delivered_at) ON app.export_runs TO %I',
    app.access_role('reader')
  );
  EXECUTE format(
    'REVOKE ALL ON app.scheduled_exports, app.export_runs, app.export_attempts FROM %I, %I',
    app.access_role('loader'), app.access_role('transformer')
  );
END
$$;

ALTER FUNCTION app.apply_access() RENAME TO apply_access_before_scheduled_exports;
CREATE FUNCTION app.apply_access() RETURNS BOOLEAN
LANGUAGE plpgsql AS
$$
BEGIN
  IF NOT app.apply_access_before_scheduled_exports() THEN
    RETURN false;
  END IF;
  PERFORM app.apply_scheduled_export_access();
  RETURN true;
END
$$;
