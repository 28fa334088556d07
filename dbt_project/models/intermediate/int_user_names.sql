-- What providers call a user id. Several connections may know it: the newest that has a name speaks.
select distinct on (org_id, entity_id)
    org_id,
    entity_id as user_identifier,
    coalesce(entity_name, provider_metadata ->> 'email') as user_display_name,
    provider_metadata || jsonb_build_object('kind', entity_kind, 'provider', provider) as user_metadata
from {{ ref('stg_raw__provider_entities') }}
where entity_kind in ('user', 'service_account')
order by
    org_id asc,
    entity_id asc,
    coalesce(entity_name, provider_metadata ->> 'email') is null asc,
    seen_at desc,
    provider_connection_id asc
