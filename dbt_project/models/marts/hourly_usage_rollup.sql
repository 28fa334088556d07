{{ config(
    materialized='incremental',
    incremental_strategy='replace_windows',
    window_column='hour',
    pre_hook=["{{ begin_changes(follows='int_connection_days') }}"],
    post_hook=["{{ end_changes() }}"],
    indexes=[{'columns': ['org_id', 'provider', 'hour']}, {'columns': ['org_id', 'hour']}],
) }}
-- Records are read by ranges of their key, day by day: an equality on the record's own day would read the whole connection each time.
with records as (
    select
        {% for column in usage_dimensions() -%}
        record.{{ column }},
        {% endfor -%}
        {{ record_measures('record', "date_trunc('hour', record.timestamp, 'UTC')") }}
    from {{ ref('int_connection_days') }} as connection_day
    {% if is_incremental() -%}
    inner join {{ this.identifier }}_windows as changed
        on
            connection_day.org_id = changed.org_id
            and connection_day.provider = changed.provider
            and connection_day.day_start < changed.window_end
            and connection_day.day_start > changed.window_start - interval '24 hours'
    {%- endif %}
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
    where
        record.granularity in ('1m', '1h')
        and {{ 'record.timestamp >= changed.window_start and record.timestamp < changed.window_end' if is_incremental() else 'true' }}
)

{{ aggregate_usage('records', ['hour'] + usage_dimensions()) }}
