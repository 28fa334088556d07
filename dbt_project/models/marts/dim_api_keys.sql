-- Every key a provider names or usage names: OpenAI no longer lists a deleted key, its usage stays (providers.md 1.4.11).
with used as (
    select
        org_id,
        provider,
        api_key_id,
        min(date) as first_seen,
        max(date) as last_seen
    from {{ ref('daily_usage_by_api_key') }}
    where api_key_id is not null
    group by org_id, provider, api_key_id
),

-- Several connections may know a key: the newest that has a name speaks.
names as (
    select distinct on (org_id, provider, entity_id)
        org_id,
        provider,
        entity_id as api_key_id,
        entity_name as api_key_name
    from {{ ref('stg_raw__provider_entities') }}
    where entity_kind = 'api_key'
    order by
        org_id asc,
        provider asc,
        entity_id asc,
        entity_name is null asc,
        seen_at desc,
        provider_connection_id asc
)

select
    org_id,
    provider,
    api_key_id,
    names.api_key_name,
    used.first_seen,
    used.last_seen
from used
full outer join names using (org_id, provider, api_key_id)
