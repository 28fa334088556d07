select
    connection_day.org_id,
    connection_day.provider,
    connection_day.provider_connection_id,
    connection.connection_name,
    (connection_day.day_start at time zone 'UTC')::date as date,
    connection_day.granularity,
    connection_day.covered_hours,
    connection_day.is_complete,
    connection.source = authority.source as is_authoritative,
    coalesce(connection_day.day_start + interval '24 hours' > max(history.final_before), true) as is_provisional,
    max(history.completed_at) as last_synced_at
from {{ ref('int_connection_days') }} as connection_day
inner join {{ ref('stg_app__provider_connections') }} as connection
    on connection_day.provider_connection_id = connection.provider_connection_id
inner join {{ ref('int_usage_authority') }} as authority
    on connection_day.org_id = authority.org_id and connection_day.provider = authority.provider
left join {{ ref('stg_raw__sync_history') }} as history
    on
        connection_day.provider_connection_id = history.provider_connection_id
        and connection_day.granularity = history.granularity
        and history.window_start < connection_day.day_start + interval '24 hours'
        and history.covered_until > connection_day.day_start
group by
    connection_day.org_id,
    connection_day.provider,
    connection_day.provider_connection_id,
    connection.connection_name,
    connection_day.day_start,
    connection_day.granularity,
    connection_day.covered_hours,
    connection_day.is_complete,
    connection.source,
    authority.source
