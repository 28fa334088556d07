-- Keys with which applications send events, and the role that stores them (docs/collector.md, docs/decisions/0018).

-- A key itself is nowhere: it has 256 random bits, so that its SHA-256 tells nobody what it is, and finding it by that hash takes
-- the same time for every wrong key.
CREATE TABLE app.organization_keys (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  org_id UUID NOT NULL REFERENCES app.organizations (id) ON DELETE CASCADE,
  name TEXT NOT NULL CHECK (name <> ''),
  key_prefix TEXT NOT NULL,
  key_hash BYTEA NOT NULL UNIQUE CHECK (octet_length(key_hash) = 32),
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  last_used_at TIMESTAMPTZ,
  revoked_at TIMESTAMPTZ
);
CREATE UNIQUE INDEX organization_keys_name ON app.organization_keys (org_id, name) WHERE revoked_at IS NULL;
COMMENT ON COLUMN app.organization_keys.key_prefix IS 'How the key begins, to tell it from others';
COMMENT ON COLUMN app.organization_keys.last_used_at IS 'To the minute; NULL: never used';

-- Access: the collector finds organisations by keys, stores events, and sees what it stored, so as to say whether a repeat is one.
CREATE FUNCTION app.apply_collector_access() RETURNS BOOLEAN
LANGUAGE plpgsql AS
$$
DECLARE
  v_collector TEXT := app.access_role('collector');
  v_relation TEXT;
BEGIN
  IF to_regrole(quote_ident(v_collector)) IS NULL THEN
    BEGIN
      EXECUTE format('CREATE ROLE %I NOLOGIN', v_collector);
    EXCEPTION
      WHEN insufficient_privilege THEN RETURN false;
      WHEN duplicate_object OR unique_violation THEN NULL;
    END;
  END IF;
  -- The owner's own collector takes this role too.
  IF NOT pg_has_role(current_user, v_collector, 'USAGE') THEN
    EXECUTE format('GRANT %I TO %I', v_collector, current_user);
  END IF;
  EXECUTE format('REVOKE ALL ON app.organization_keys FROM %I, %I', app.access_role('loader'), app.access_role('transformer'));
  EXECUTE format('GRANT USAGE ON SCHEMA app, raw TO %I', v_collector);
  EXECUTE format('GRANT SELECT (id, org_id, key_hash, last_used_at, revoked_at), UPDATE (last_used_at) ON app.organization_keys TO %I', v_collector);
  EXECUTE format('GRANT SELECT (id) ON app.organizations TO %I', v_collector);
  EXECUTE format('GRANT SELECT ON app.alembic_version TO %I', v_collector);
  EXECUTE format('GRANT SELECT, INSERT ON raw.usage_events, raw.pending_usage_events TO %I', v_collector);
  FOREACH v_relation IN ARRAY ARRAY['app.organization_keys', 'app.organizations', 'raw.usage_events', 'raw.pending_usage_events'] LOOP
    -- What is right already is left alone, as in app.apply_access: changing it takes locks.
    IF NOT EXISTS (
      SELECT FROM pg_policy AS p WHERE p.polrelid = v_relation::REGCLASS AND p.polname = 'collector'
        AND p.polroles = ARRAY[to_regrole(quote_ident(v_collector))::OID]
    ) THEN
      EXECUTE format('DROP POLICY IF EXISTS collector ON %s', v_relation);
      EXECUTE format('CREATE POLICY collector ON %s TO %I USING (true) WITH CHECK (true)', v_relation, v_collector);
    END IF;
  END LOOP;
  RETURN true;
END
$$;

ALTER FUNCTION app.apply_access() RENAME TO apply_access_before_collector;
CREATE FUNCTION app.apply_access() RETURNS BOOLEAN
LANGUAGE plpgsql AS
$$
BEGIN
  RETURN app.apply_access_before_collector() AND app.apply_collector_access();
END
$$;
