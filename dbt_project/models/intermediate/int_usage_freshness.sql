-- How far the rollups of an organisation reach, by the syncs and imports that they hold, of the sources that count.
with held as (
    select
        connection.org_id,
        connection.provider_connection_id,
        history.window_start,
        history.covered_until,
        history.final_before
    from {{ ref('stg_app__provider_connections') }} as connection
    inner join {{ ref('int_usage_authority') }} as authority
        on
            connection.org_id = authority.org_id
            and connection.provider = authority.provider
            and connection.source = authority.source
    inner join {{ ref('stg_raw__sync_history') }} as history
        on connection.provider_connection_id = history.provider_connection_id
    where history.sync_id not in (
        select change.sync_id
        from {{ source('raw', 'usage_changes') }} as change
        where
            change.sync_id is not null
            and change.change_number > (
                select coalesce(max(progress.change_number), 0)
                from {{ source('raw', 'model_progress') }} as progress
                where progress.model = 'hourly_usage_rollup'
            )
    )
),

connections as (
    select
        org_id,
        provider_connection_id,
        max(covered_until) as covered_until,
        range_agg(tstzrange(window_start, covered_until))
        - coalesce(
            range_agg(tstzrange(window_start, least(covered_until, final_before))) filter (
                where final_before > window_start
            ),
            '{}'::tstzmultirange
        ) as provisional_spans
    from held
    group by org_id, provider_connection_id
)

select
    org_id,
    max(covered_until) as data_until,
    min(covered_until) as complete_until,
    range_agg(provisional_spans) as provisional_spans
from connections
group by org_id
