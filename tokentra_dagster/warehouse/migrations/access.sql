-- Access (design, "Security"; docs/access.md): who may read and write what, and whose rows a reader sees.
--
-- The owner is the role that migrates. Three group roles stand beside it, named after the database because roles belong to the
-- whole server: tokentra_loader_DB, tokentra_transformer_DB, tokentra_reader_DB. `app.apply_access()` makes them and grants what
-- they need; migrations run it at their end, and dbt runs the part of one relation whenever it has made that relation.

-- Whose rows a reader's login sees. org_id NULL: every organisation's. Only the owner may read or change it.
CREATE TABLE app.reader_organizations (
  role_name TEXT NOT NULL,
  org_id UUID REFERENCES app.organizations (id) ON DELETE CASCADE,
  granted_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  UNIQUE NULLS NOT DISTINCT (role_name, org_id)
);

CREATE FUNCTION app.access_role(kind TEXT) RETURNS TEXT
LANGUAGE sql STABLE PARALLEL SAFE AS
$$
  SELECT CASE WHEN octet_length(current_database()) <= 40 THEN 'tokentra_' || kind || '_' || current_database()
    ELSE 'tokentra_' || kind || '_' || md5(current_database()) END
$$;

-- The organisations of the login that asks: session_user is who logged in, whatever role or setting was set since.
CREATE FUNCTION app.reader_org_ids() RETURNS UUID[]
LANGUAGE sql STABLE SECURITY DEFINER PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS
$$
  SELECT coalesce(array_agg(o.id), '{}')
  FROM app.organizations AS o
  WHERE EXISTS (
    SELECT FROM app.reader_organizations AS r
    WHERE r.role_name = session_user AND (r.org_id = o.id OR r.org_id IS NULL)
  )
$$;

-- Where a reader may read beside marts and analytics, and which columns (NULL: all). The specification's own tables are in raw
-- and app; the others are what views in marts and the stored functions read, with the reader's rights.
CREATE FUNCTION app.reader_relations() RETURNS TABLE (relation TEXT, columns TEXT)
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$
  VALUES
    ('raw.usage_records', NULL), ('raw.provider_entities', NULL), ('raw.provider_entity_names', NULL), ('raw.provider_costs', NULL),
    ('raw.sync_history', 'id, org_id, provider_connection_id, kind, granularity, window_start, window_end, status, started_at, '
      'completed_at, covered_until, final_before, records_loaded'),
    ('app.organizations', NULL), ('app.teams', NULL), ('app.projects', NULL), ('app.cost_centers', NULL),
    ('app.provider_connections', 'id, org_id, name, provider, source, is_active, created_at, updated_at'),
    ('app.source_authorities', NULL), ('app.usage_quotas', NULL), ('app.usage_quota_versions', NULL), ('app.quota_events', NULL),
    ('app.quota_usage_history', NULL), ('app.entity_names', NULL), ('app.model_aliases', NULL), ('app.environment_aliases', NULL)
$$;

-- What the roles may do with one relation. Cheap and repeatable; whoever calls it must own the relation.
CREATE FUNCTION app.apply_access(relation REGCLASS) RETURNS VOID
LANGUAGE plpgsql AS
$$
DECLARE
  v_schema TEXT;
  v_name TEXT;
  v_kind "char";
  v_org TEXT;
  v_secured BOOLEAN;
  v_columns TEXT;
  v_read BOOLEAN;
  v_owner TEXT;
  v_owned_by TEXT;
  v_loader TEXT := app.access_role('loader');
  v_transformer TEXT := app.access_role('transformer');
  v_reader TEXT := app.access_role('reader');
BEGIN
  IF to_regrole(quote_ident(v_reader)) IS NULL THEN
    RETURN;
  END IF;
  SELECT n.nspname, c.relname, c.relkind, c.relrowsecurity INTO v_schema, v_name, v_kind, v_secured
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = relation;
  SELECT a.attname INTO v_org FROM pg_attribute AS a
  WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
    AND a.attname = CASE WHEN v_schema = 'app' AND v_name = 'organizations' THEN 'id' ELSE 'org_id' END;
  v_read := v_schema IN ('staging', 'intermediate', 'marts', 'analytics');
  IF NOT v_read THEN
    SELECT r.columns INTO v_columns FROM app.reader_relations() AS r WHERE r.relation = v_schema || '.' || v_name;
    v_read := FOUND;
  END IF;
  -- What is right already is left alone: changing it takes locks that wait for every reader.
  IF v_kind = 'v' AND (SELECT 'security_invoker=true' = ANY (c.reloptions) FROM pg_class AS c WHERE c.oid = relation) THEN
    NULL;
  ELSIF v_kind = 'v' THEN
    -- A view asks for its reader's rights, row-level security included, and not for its owner's.
    EXECUTE format('ALTER VIEW %s SET (security_invoker = true)', relation);
  ELSIF v_kind IN ('r', 'p') AND v_org IS NOT NULL THEN
    IF NOT v_secured THEN
      EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', relation);
    END IF;
    IF NOT EXISTS (
      SELECT FROM pg_policy AS p WHERE p.polrelid = relation AND p.polname = 'readers' AND p.polroles = ARRAY[to_regrole(quote_ident(v_reader))::OID]
    ) THEN
      EXECUTE format('DROP POLICY IF EXISTS readers ON %s', relation);
      EXECUTE format('CREATE POLICY readers ON %s FOR SELECT TO %I USING (%I = ANY ((SELECT app.reader_org_ids())::UUID[]))', relation, v_reader, v_org);
      EXECUTE format('DROP POLICY IF EXISTS platform ON %s', relation);
      EXECUTE format('CREATE POLICY platform ON %s TO %I, %I USING (true) WITH CHECK (true)', relation, v_loader, v_transformer);
    END IF;
  ELSE
    -- Nothing says whose its rows are: nobody else's may be seen, so no reader sees any.
    v_read := false;
  END IF;
  IF v_read AND v_columns IS NULL THEN
    EXECUTE format('GRANT SELECT ON %s TO %I', relation, v_reader);
  ELSIF v_read THEN
    EXECUTE format('GRANT SELECT (%s) ON %s TO %I', v_columns, relation, v_reader);
  END IF;
  -- Swapping a table, attaching a partition and COPY beside row-level security are an owner's rights.
  v_owner := CASE WHEN v_schema = 'raw' THEN v_loader WHEN v_schema <> 'app' THEN v_transformer END;
  -- (In a copy of another database that database's roles own them.)
  v_owned_by := pg_get_userbyid((SELECT c.relowner FROM pg_class AS c WHERE c.oid = relation));
  IF v_owner <> v_owned_by AND (v_owned_by = current_user OR v_owned_by ~ '^tokentra_(loader|transformer)_') THEN
    EXECUTE format('ALTER %s %s OWNER TO %I', CASE v_kind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'TABLE' END, relation, v_owner);
  END IF;
END
$$;

-- Everything: the roles where they are missing, then schemas, tables and functions. Returns false, having changed nothing, where
-- the owner may not make roles: the platform then works as the owner alone.
CREATE FUNCTION app.apply_access() RETURNS BOOLEAN
LANGUAGE plpgsql AS
$$
DECLARE
  v_loader TEXT := app.access_role('loader');
  v_transformer TEXT := app.access_role('transformer');
  v_reader TEXT := app.access_role('reader');
  v_role TEXT;
  v_relation REGCLASS;
  v_other RECORD;
BEGIN
  FOREACH v_role IN ARRAY ARRAY[v_loader, v_transformer, v_reader] LOOP
    IF to_regrole(quote_ident(v_role)) IS NULL THEN
      BEGIN
        EXECUTE format('CREATE ROLE %I NOLOGIN', v_role);
      EXCEPTION
        WHEN insufficient_privilege THEN RETURN false;
        WHEN duplicate_object OR unique_violation THEN NULL;
      END;
    END IF;
  END LOOP;
  -- What the owner hands to the transformer stays the owner's to change.
  IF NOT pg_has_role(current_user, v_transformer, 'USAGE') THEN
    EXECUTE format('GRANT %I, %I TO %I', v_transformer, v_loader, current_user);
  END IF;
  EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
  EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO %I, %I', current_database(), v_loader, v_transformer);
  EXECUTE format('GRANT USAGE ON SCHEMA app, raw, staging, intermediate, marts, analytics TO %I, %I', v_transformer, v_reader);
  EXECUTE format('GRANT CREATE ON SCHEMA staging, intermediate, marts, analytics TO %I', v_transformer);
  EXECUTE format('GRANT USAGE ON SCHEMA app, raw TO %I', v_loader);
  EXECUTE format('GRANT CREATE ON SCHEMA raw TO %I', v_loader);
  -- A copy of another database still knows that database's roles.
  FOR v_other IN
    SELECT DISTINCT n.nspname, r.rolname FROM pg_namespace AS n CROSS JOIN LATERAL aclexplode(n.nspacl) AS acl
    JOIN pg_roles AS r ON r.oid = acl.grantee
    WHERE r.rolname ~ '^tokentra_(loader|transformer|reader)_' AND r.rolname NOT IN (v_loader, v_transformer, v_reader)
  LOOP
    EXECUTE format('REVOKE ALL ON SCHEMA %I FROM %I', v_other.nspname, v_other.rolname);
  END LOOP;
  FOR v_relation IN
    SELECT c.oid FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname IN ('app', 'raw', 'staging', 'intermediate', 'marts', 'analytics') AND c.relkind IN ('r', 'p', 'v', 'm')
      AND NOT c.relispartition AND c.oid <> 'app.reader_organizations'::REGCLASS AND pg_has_role(current_user, c.relowner, 'USAGE')
  LOOP
    PERFORM app.apply_access(v_relation);
  END LOOP;
  FOR v_relation IN
    SELECT i.inhrelid FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'raw.usage_records'::REGCLASS AND c.relowner <> to_regrole(quote_ident(v_loader))::OID
  LOOP
    EXECUTE format('ALTER TABLE %s OWNER TO %I', v_relation, v_loader);
  END LOOP;
  EXECUTE format('GRANT USAGE ON ALL SEQUENCES IN SCHEMA raw TO %I', v_loader);
  EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA app TO %I', v_loader);
  EXECUTE format('GRANT INSERT ON app.teams, app.projects, app.cost_centers TO %I', v_loader);
  -- Their triggers keep what they were called.
  EXECUTE format('GRANT INSERT, UPDATE ON app.entity_names TO %I', v_loader);
  EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA raw, app TO %I', v_transformer);
  EXECUTE format('GRANT INSERT, UPDATE ON raw.model_progress TO %I', v_transformer);
  EXECUTE format('REVOKE ALL ON raw.rejected_records, app.provider_connections FROM %I', v_transformer);
  EXECUTE format('GRANT SELECT (id, org_id, name, provider, source, is_active, created_at, updated_at) ON app.provider_connections TO %I', v_transformer);
  EXECUTE format('REVOKE ALL ON app.reader_organizations FROM %I, %I', v_loader, v_transformer);
  -- Functions run with the rights of whoever calls them; those that do not are the owner's, except the one that policies ask.
  FOR v_other IN
    SELECT p.oid::REGPROCEDURE AS name FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname IN ('app', 'raw', 'marts', 'analytics') AND p.prosecdef AND p.proname <> 'reader_org_ids'
  LOOP
    EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', v_other.name);
  END LOOP;
  RETURN true;
END
$$;
