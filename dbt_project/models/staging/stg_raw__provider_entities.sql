select
    provider_connection_id,
    org_id,
    provider,
    kind as entity_kind,
    entity_id,
    name as entity_name,
    provider_metadata,
    seen_at
from {{ source('raw', 'provider_entities') }}
