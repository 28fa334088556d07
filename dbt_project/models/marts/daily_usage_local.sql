{{ config(
    materialized='incremental',
    incremental_strategy='replace_windows',
    window_column='local_date',
    pre_hook=["{{ begin_changes(follows='hourly_usage_rollup') }}", "{{ local_day_windows() }}"],
    post_hook=["{{ end_changes() }}"],
    indexes=[{'columns': ['org_id', 'provider', 'local_date']}],
) }}
-- Days of the organisation's own time zone, a reporting choice on top of hours (correction 5). An hour that local midnight
-- divides (zones of half and quarter hours) is read from records: minutes fall on their own day, an hour record on the day in
-- which it begins. Day records keep their UTC date. Both are marked approximate.
with hours as (
    select
        {{ local_date('hourly.hour', 'organization.time_zone') }} as local_date,
        organization.time_zone,
        {% for column in usage_dimensions() -%}
        hourly.{{ column }},
        {% endfor -%}
        {{ rollup_measures('hourly', 'hourly.hour') }},
        false as is_approximate
    from {{ ref('hourly_usage_rollup') }} as hourly
    inner join {{ ref('stg_app__organizations') }} as organization on hourly.org_id = organization.org_id
    {% if is_incremental() -%}
    inner join {{ this.identifier }}_windows as changed
        on
            hourly.org_id = changed.org_id
            and hourly.provider = changed.provider
            and hourly.hour >= changed.from_moment
            and hourly.hour < changed.to_moment
            and {{ is_in_local_window(local_date('hourly.hour', 'organization.time_zone'), 'changed') }}
    {%- endif %}
    where not {{ hour_straddles_midnight('hourly.hour', 'organization.time_zone') }}
),

counted_days as (
    select
        connection_day.provider_connection_id,
        connection_day.day_start,
        connection_day.granularity,
        {% if is_incremental() -%}
        changed.first_date,
        changed.end_date,
        {% endif -%}
        organization.time_zone
    from {{ ref('int_connection_days') }} as connection_day
    inner join {{ ref('stg_app__organizations') }} as organization on connection_day.org_id = organization.org_id
    {% if is_incremental() -%}
    inner join {{ this.identifier }}_windows as changed
        on
            connection_day.org_id = changed.org_id
            and connection_day.provider = changed.provider
            and connection_day.day_start > changed.from_moment - interval '24 hours'
            and connection_day.day_start < changed.to_moment
    {%- endif %}
    inner join {{ ref('stg_app__provider_connections') }} as connection
        on connection_day.provider_connection_id = connection.provider_connection_id
    inner join {{ ref('int_usage_authority') }} as authority
        on
            connection.org_id = authority.org_id
            and connection.provider = authority.provider
            and connection.source = authority.source
),

divided as (
    select
        counted.*,
        counted.day_start + make_interval(hours => hour_of_day.number) as hour
    from counted_days as counted
    cross join generate_series(0, 23) as hour_of_day (number)
    where
        counted.granularity in ('1m', '1h')
        and {{ hour_straddles_midnight(
            "(counted.day_start + make_interval(hours => hour_of_day.number))", 'counted.time_zone'
        ) }}
),

-- `offset 0`: one range of the records' key per divided hour, never a join of all records with all hours.
divided_hours as (
    select
        {{ local_date('record.timestamp', 'divided.time_zone') }} as local_date,
        divided.time_zone,
        {% for column in usage_dimensions() -%}
        record.{{ column }},
        {% endfor -%}
        {{ record_measures('record', 'null::timestamptz') }},
        record.granularity = '1h' as is_approximate
    from divided
    cross join
        lateral (
            select of_hour.*
            from {{ ref('stg_raw__usage_records') }} as of_hour
            where
                of_hour.provider_connection_id = divided.provider_connection_id
                and of_hour.granularity = divided.granularity
                and of_hour.timestamp >= divided.hour
                and of_hour.timestamp < divided.hour + interval '1 hour'
            offset 0  -- noqa: AM09
        ) as record
    where {{ is_in_local_window(local_date('record.timestamp', 'divided.time_zone'), 'divided') }}
),

day_records as (
    select
        (record.timestamp at time zone 'UTC')::date as local_date,
        counted.time_zone,
        {% for column in usage_dimensions() -%}
        record.{{ column }},
        {% endfor -%}
        {{ record_measures('record', 'null::timestamptz') }},
        counted.day_start at time zone counted.time_zone <> counted.day_start at time zone 'UTC' as is_approximate
    from counted_days as counted
    inner join {{ ref('stg_raw__usage_records') }} as record
        on
            counted.provider_connection_id = record.provider_connection_id
            and record.timestamp >= counted.day_start
            and record.timestamp < counted.day_start + interval '24 hours'
            and record.granularity = '1d'
    where
        counted.granularity = '1d'
        and {{ is_in_local_window(local_date('counted.day_start', "'UTC'"), 'counted') }}
),

parts as (
    select * from hours
    union all
    select * from divided_hours
    union all
    select * from day_records
)

{{ aggregate_usage(
    'parts', ['local_date', 'time_zone'] + usage_dimensions(), also={'is_approximate': 'bool_or(is_approximate)'}
) }}
