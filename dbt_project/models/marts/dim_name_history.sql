-- What everything was called when; the dim_ marts have one row per id with today's name, so that they never multiply usage.
select
    org_id,
    kind as entity_kind,
    null as provider,
    null::uuid as provider_connection_id,
    entity_id::text as entity_id,
    name,
    valid_from,
    valid_to,
    valid_to is null as is_current
from {{ source('app', 'entity_names') }}
union all
select
    org_id,
    'provider_' || kind as entity_kind,
    provider,
    provider_connection_id,
    entity_id,
    name,
    valid_from,
    valid_to,
    valid_to is null as is_current
from {{ source('raw', 'provider_entity_names') }}
