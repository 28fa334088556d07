{{ config(
    materialized='incremental',
    incremental_strategy='replace_windows',
    window_column='hour',
    pre_hook=["{{ begin_changes(follows='int_connection_days') }}"],
    post_hook=["{{ end_changes() }}"],
    indexes=[{'columns': ['org_id', 'provider', 'hour']}],
) }}
with records as (
    select
        {% for column in usage_dimensions() -%}
        record.{{ column }},
        {% endfor -%}
        {{ record_measures('record', "date_trunc('hour', record.timestamp, 'UTC')") }}
    {% if is_incremental() -%}
    from {{ this.identifier }}_windows as changed
    inner join {{ ref('stg_app__provider_connections') }} as connection
        on changed.org_id = connection.org_id and changed.provider = connection.provider
    inner join {{ ref('stg_raw__usage_records') }} as record
        on
            connection.provider_connection_id = record.provider_connection_id
            and record.timestamp >= changed.window_start
            and record.timestamp < changed.window_end
    {%- else -%}
    from {{ ref('stg_raw__usage_records') }} as record
    inner join {{ ref('stg_app__provider_connections') }} as connection
        on record.provider_connection_id = connection.provider_connection_id
    {%- endif %}
    inner join {{ ref('int_usage_authority') }} as authority
        on
            connection.org_id = authority.org_id
            and connection.provider = authority.provider
            and connection.source = authority.source
    inner join {{ ref('int_connection_days') }} as connection_day
        on
            record.provider_connection_id = connection_day.provider_connection_id
            and date_trunc('day', record.timestamp, 'UTC') = connection_day.day_start
            and record.granularity = connection_day.granularity
    where record.granularity in ('1m', '1h')
)

{{ aggregate_usage('records', ['hour'] + usage_dimensions()) }}
