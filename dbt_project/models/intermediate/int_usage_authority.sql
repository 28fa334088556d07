-- Correction 11: per organisation and provider one source counts; the others only enrich.
with ranked as (
    select
        org_id,
        provider,
        source,
        row_number() over (
            partition by org_id, provider
            order by array_position(array['provider_api', 'gateway', 'events', 'file'], source)
        ) as place
    from (
        select distinct
            org_id,
            provider,
            source
        from {{ ref('stg_app__provider_connections') }}
    ) as seen
)

select
    ranked.org_id,
    ranked.provider,
    coalesce(chosen.source, ranked.source) as source
from ranked
left join {{ source('app', 'source_authorities') }} as chosen
    on ranked.org_id = chosen.org_id and ranked.provider = chosen.provider
where ranked.place = 1
