{{ config(meta={'dagster': {'ref': {'name': 'daily_usage_rollup'}}}) }}
-- Per organisation, provider, model and UTC day the daily rollup says what the records that count say. Compares the days that
-- the last build changed (`--vars 'compare: everything'`: all), without those that have changed again since or whose records have expired.
with spans as (
    {{ built_spans(['daily_usage_rollup']) }}
),

in_records as (
    select
        record.org_id,
        record.provider,
        record.model,
        (record.timestamp at time zone 'UTC')::date as date,
        sum(record.total_tokens) as total_tokens,
        sum(record.request_count) as request_count,
        sum(record.estimated_cost) as estimated_cost,
        count(*) as record_count
    from spans
    inner join {{ ref('stg_app__provider_connections') }} as connection
        on spans.org_id = connection.org_id and spans.provider = connection.provider
    inner join {{ ref('int_usage_authority') }} as authority
        on
            connection.org_id = authority.org_id
            and connection.provider = authority.provider
            and connection.source = authority.source
    inner join {{ ref('int_connection_days') }} as connection_day
        on
            connection.provider_connection_id = connection_day.provider_connection_id
            and connection_day.day_start >= lower(spans.span)
            and connection_day.day_start < upper(spans.span)
    inner join {{ ref('stg_raw__usage_records') }} as record
        on
            connection_day.provider_connection_id = record.provider_connection_id
            and connection_day.granularity = record.granularity
            and record.timestamp >= connection_day.day_start
            and record.timestamp < connection_day.day_start + interval '24 hours'
    group by record.org_id, record.provider, record.model, (record.timestamp at time zone 'UTC')::date
),

in_rollup as (
    select
        daily.org_id,
        daily.provider,
        daily.model,
        daily.date,
        sum(daily.total_tokens) as total_tokens,
        sum(daily.request_count) as request_count,
        sum(daily.estimated_cost) as estimated_cost,
        sum(daily.record_count) as record_count
    from spans
    inner join {{ ref('daily_usage_rollup') }} as daily
        on {{ in_span('daily', 'date') }}
    group by daily.org_id, daily.provider, daily.model, daily.date
)

select
    org_id,
    provider,
    model,
    date,
    in_records.total_tokens as recorded_tokens,
    in_rollup.total_tokens as rolled_up_tokens
from in_records
full outer join in_rollup using (org_id, provider, model, date)
where
    (in_records.total_tokens, in_records.request_count, in_records.estimated_cost, in_records.record_count)
    is distinct from (in_rollup.total_tokens, in_rollup.request_count, in_rollup.estimated_cost, in_rollup.record_count)
