-- Who is asked for a connection's usage: the provider itself, or a gateway, an export or a log that saw some of it.
ALTER TABLE app.provider_connections ADD COLUMN integration TEXT CHECK (integration <> '');
UPDATE app.provider_connections SET integration = provider WHERE source = 'provider_api';
ALTER TABLE app.provider_connections
  ADD CONSTRAINT provider_connections_integration CHECK (source <> 'provider_api' OR integration IS NOT NULL);
COMMENT ON COLUMN app.provider_connections.integration IS
  'Which integration reads it (docs/providers.md); unknown for events and imported files, which nobody asks for';

-- A program that names the provider only means the provider itself.
CREATE FUNCTION app.name_integration() RETURNS TRIGGER LANGUAGE plpgsql AS
$$
BEGIN
  IF NEW.source = 'provider_api' THEN
    NEW.integration := coalesce(NEW.integration, NEW.provider);
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER name_integration BEFORE INSERT OR UPDATE ON app.provider_connections
FOR EACH ROW EXECUTE FUNCTION app.name_integration();
