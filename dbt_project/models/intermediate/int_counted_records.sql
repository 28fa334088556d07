-- The usage records that count, each once: of the authoritative source (correction 11), at the width that counts on their
-- connection's day (correction 9). `day_start` is the range by which incremental models find the days that changed.
select
    record.org_id,
    record.provider,
    record.provider_connection_id,
    connection_day.day_start,
    record.timestamp,
    record.granularity,
    record.model,
    record.feature,
    record.api_key_id,
    case when cardinality(record.user_ids) = 1 then record.user_ids[1] end as user_id,
    record.currency,
    record.input_tokens,
    record.output_tokens,
    record.total_tokens,
    record.cached_input_tokens,
    record.cache_creation_tokens,
    record.request_count,
    record.success_count,
    record.error_count,
    record.total_latency_ms,
    case when record.total_latency_ms is not null then record.request_count end as latency_request_count,
    record.estimated_cost,
    case when record.cost_basis = 'unpriced' then record.total_tokens else 0 end as unpriced_tokens
from {{ ref('int_connection_days') }} as connection_day
inner join {{ ref('stg_app__provider_connections') }} as connection
    on connection_day.provider_connection_id = connection.provider_connection_id
inner join {{ ref('int_usage_authority') }} as authority
    on
        connection.org_id = authority.org_id
        and connection.provider = authority.provider
        and connection.source = authority.source
inner join {{ ref('stg_raw__usage_records') }} as record
    on
        connection_day.provider_connection_id = record.provider_connection_id
        and connection_day.granularity = record.granularity
        and record.timestamp >= connection_day.day_start
        and record.timestamp < connection_day.day_start + interval '24 hours'
