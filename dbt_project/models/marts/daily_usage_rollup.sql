{{ config(
    materialized='incremental',
    incremental_strategy='replace_windows',
    window_column='date',
    pre_hook=["{{ begin_changes(follows='hourly_usage_rollup', width='day') }}"],
    post_hook=["{{ end_changes() }}"],
    indexes=[{'columns': ['org_id', 'provider', 'date']}, {'columns': ['org_id', 'date']}],
) }}
-- Days are the sum of their hours, and of the day records of connections whose day counts as a whole.
with parts as (
    select
        (hourly.hour at time zone 'UTC')::date as date,
        {% for column in usage_dimensions() -%}
        hourly.{{ column }},
        {% endfor -%}
        hourly.input_tokens,
        hourly.output_tokens,
        hourly.total_tokens,
        hourly.cached_input_tokens,
        hourly.cache_creation_tokens,
        hourly.quantity,
        hourly.request_count,
        hourly.success_count,
        hourly.error_count,
        hourly.total_latency_ms,
        hourly.latency_request_count,
        hourly.min_latency_ms,
        hourly.max_latency_ms,
        hourly.p50_latency_ms,
        hourly.p95_latency_ms,
        hourly.p99_latency_ms,
        hourly.latency_is_approximate,
        hourly.latency_histogram,
        hourly.estimated_cost,
        hourly.unpriced_tokens,
        hourly.user_ids,
        hourly.record_count,
        hourly.hour
    from {{ ref('hourly_usage_rollup') }} as hourly
    {{ in_changed_windows('hourly', 'hour') }}
    union all
    select
        (record.timestamp at time zone 'UTC')::date as date,
        {% for column in usage_dimensions() -%}
        record.{{ column }},
        {% endfor -%}
        {{ record_measures('record', 'null::timestamptz') }}
    from {{ ref('int_connection_days') }} as connection_day
    inner join {{ ref('stg_app__provider_connections') }} as connection
        on connection_day.provider_connection_id = connection.provider_connection_id
    {{ in_changed_windows('connection_day', 'day_start') }}
    inner join {{ ref('int_usage_authority') }} as authority
        on
            connection.org_id = authority.org_id
            and connection.provider = authority.provider
            and connection.source = authority.source
    inner join {{ ref('stg_raw__usage_records') }} as record
        on
            connection_day.provider_connection_id = record.provider_connection_id
            and record.timestamp >= connection_day.day_start
            and record.timestamp < connection_day.day_start + interval '24 hours'
            and record.granularity = '1d'
    where connection_day.granularity = '1d'
)

{{ aggregate_usage('parts', ['date'] + usage_dimensions(), of_hours=true) }}
