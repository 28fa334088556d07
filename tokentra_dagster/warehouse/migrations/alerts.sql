-- Alerts (specification section 8; docs/alerts.md, docs/decisions/0017).

-- Where alerts go. org_id NULL: the operators' channel, which hears of every organisation and of what belongs to none.
CREATE TABLE app.alert_channels (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  org_id UUID REFERENCES app.organizations (id) ON DELETE CASCADE,
  name TEXT NOT NULL CHECK (name <> ''),
  kind TEXT NOT NULL CHECK (kind IN ('email', 'webhook', 'slack')),
  config JSONB NOT NULL CHECK (jsonb_typeof(config) = 'object'),
  alert_kinds TEXT[] NOT NULL,
  least_severity TEXT NOT NULL DEFAULT 'warning' CHECK (least_severity IN ('info', 'warning', 'critical')),
  is_active BOOLEAN NOT NULL DEFAULT true,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  UNIQUE NULLS NOT DISTINCT (org_id, name)
);
COMMENT ON COLUMN app.alert_channels.config IS 'Settings of the destination; secrets only as references (env:NAME, file:PATH)';

-- What was raised. The unique key is why it is raised once, however many evaluate at the same time.
CREATE TABLE app.alerts (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  org_id UUID REFERENCES app.organizations (id) ON DELETE CASCADE,
  kind TEXT NOT NULL CHECK (kind IN (
    'quota_warning', 'quota_critical', 'quota_exceeded', 'quota_projected', 'anomaly', 'failed_sync', 'failed_run'
  )),
  subject TEXT NOT NULL,
  period_start TIMESTAMPTZ NOT NULL,
  period_end TIMESTAMPTZ,
  severity TEXT NOT NULL CHECK (severity IN ('info', 'warning', 'critical')),
  title TEXT NOT NULL,
  body TEXT NOT NULL,
  details JSONB NOT NULL DEFAULT '{}',
  raised_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
  last_seen_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
  resolved_at TIMESTAMPTZ,
  acknowledged_at TIMESTAMPTZ,
  acknowledged_by TEXT,
  acknowledgement_note TEXT,
  UNIQUE NULLS NOT DISTINCT (org_id, kind, subject, period_start),
  CHECK (period_end >= period_start)
);
CREATE INDEX alerts_open ON app.alerts (raised_at) WHERE resolved_at IS NULL;
CREATE INDEX alerts_raised ON app.alerts (raised_at);
COMMENT ON TABLE app.alerts IS 'What was raised: once per organisation, kind, subject and period';
COMMENT ON COLUMN app.alerts.org_id IS 'NULL: about the platform itself, for the operators';
COMMENT ON COLUMN app.alerts.subject IS 'What it is about: id of the quota or connection, direction and measure of an anomaly, job of a run';
COMMENT ON COLUMN app.alerts.period_start IS 'Of the quota''s period, of the anomaly, or the first failure of a streak';
COMMENT ON COLUMN app.alerts.resolved_at IS 'Since when it no longer holds (a higher level was reached, the period is over, it works again); NULL: it holds';

-- Which alerts are not sent for a while. NULL in a column: any.
CREATE TABLE app.alert_snoozes (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  org_id UUID REFERENCES app.organizations (id) ON DELETE CASCADE,
  kind TEXT,
  subject TEXT,
  snoozed_until TIMESTAMPTZ NOT NULL,
  snoozed_by TEXT,
  note TEXT,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CHECK (num_nonnulls(kind, subject) > 0)
);
COMMENT ON COLUMN app.alert_snoozes.org_id IS 'NULL: alerts that belong to no organisation';

-- One alert to one channel, once. Alerts of one message have one message_id, which was committed before the message was sent.
CREATE TABLE app.alert_deliveries (
  alert_id UUID NOT NULL REFERENCES app.alerts (id) ON DELETE CASCADE,
  channel_id UUID NOT NULL REFERENCES app.alert_channels (id) ON DELETE CASCADE,
  message_id UUID NOT NULL,
  status TEXT NOT NULL DEFAULT 'waiting' CHECK (status IN ('waiting', 'sent', 'failed', 'skipped')),
  attempts INTEGER NOT NULL DEFAULT 0,
  next_attempt_at TIMESTAMPTZ NOT NULL,
  sent_at TIMESTAMPTZ,
  error TEXT,
  PRIMARY KEY (alert_id, channel_id)
);
CREATE INDEX alert_deliveries_waiting ON app.alert_deliveries (channel_id) WHERE status = 'waiting';
COMMENT ON COLUMN app.alert_deliveries.status IS 'waiting: to be sent or tried again; sent; failed: trying again cannot help, or was given up; skipped: it no longer held or somebody knew before it could be sent';
COMMENT ON COLUMN app.alert_deliveries.error IS 'What went wrong last, a sentence without secrets; of a sent e-mail: who did not get it';

-- An alert counts once among the alerts_sent of a quota's period, whatever number of channels it went to.
CREATE UNIQUE INDEX quota_events_alert ON app.quota_events ((details ->> 'alert_id')) WHERE kind = 'alert' AND details ? 'alert_id';

-- Streaks of failures are read by start, newest first.
CREATE INDEX sync_history_started ON raw.sync_history (provider_connection_id, started_at);

-- When an insight happened, for those that are events (anomalies): the same event found again is not news.
ALTER TABLE analytics.insights ADD COLUMN starts_at TIMESTAMPTZ, ADD COLUMN ends_at TIMESTAMPTZ, ADD COLUMN direction TEXT;
COMMENT ON COLUMN analytics.insights.starts_at IS 'Start of the event that the insight is of, UTC; NULL: it is of the whole period';
COMMENT ON COLUMN analytics.insights.ends_at IS 'End of the event, excluded';
COMMENT ON COLUMN analytics.insights.direction IS 'Of an anomaly: spike or drop';
CREATE INDEX insights_events ON analytics.insights (ends_at) WHERE kind = 'anomaly';

-- Access: readers see which alerts their organisations had, without the errors in them; channels are the owner's alone.
CREATE FUNCTION app.apply_alert_access() RETURNS VOID
LANGUAGE plpgsql AS
$$
BEGIN
  EXECUTE format(
    'GRANT SELECT (id, org_id, kind, subject, period_start, period_end, severity, title, raised_at, resolved_at, acknowledged_at) ON app.alerts TO %I',
    app.access_role('reader')
  );
  EXECUTE format('REVOKE ALL ON app.alert_channels, app.alert_deliveries FROM %I, %I', app.access_role('loader'), app.access_role('transformer'));
END
$$;

ALTER FUNCTION app.apply_access() RENAME TO apply_access_without_alerts;
CREATE FUNCTION app.apply_access() RETURNS BOOLEAN
LANGUAGE plpgsql AS
$$
BEGIN
  IF NOT app.apply_access_without_alerts() THEN
    RETURN false;
  END IF;
  PERFORM app.apply_alert_access();
  RETURN true;
END
$$;
