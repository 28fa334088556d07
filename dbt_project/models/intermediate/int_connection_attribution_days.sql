{{ config(
    materialized='incremental',
    incremental_strategy='replace_windows',
    window_column='date',
    pre_hook=["{{ begin_changes(follows='int_connection_days', width='day') }}"],
    post_hook=["{{ end_changes() }}"],
    indexes=[{'columns': ['org_id', 'provider', 'date']}],
) }}
{%- set dimensions = {
    'team': 'record.team_id::text', 'project': 'record.project_id::text', 'cost_center': 'record.cost_center_id::text',
    'feature': 'record.feature', 'environment': 'record.environment',
    'user': 'case when cardinality(record.user_ids) = 1 then record.user_ids[1] end',
} %}
-- Whose usage each connection says it was, one dimension at a time, on the days of which more than one source speaks: what one
-- of them does not attribute, another may (correction 11).
with days as (
    select *
    from (
        select
            connection_day.*,
            min(connection.source) over of_day <> max(connection.source) over of_day as is_of_several
        from {{ ref('int_connection_days') }} as connection_day
        inner join {{ ref('stg_app__provider_connections') }} as connection
            on connection_day.provider_connection_id = connection.provider_connection_id
        {{ in_changed_windows('connection_day', 'day_start') }}
        window of_day as (partition by connection_day.org_id, connection_day.provider, connection_day.day_start)
    ) as judged
    where is_of_several
)

select
    (days.day_start at time zone 'UTC')::date as date,
    days.org_id,
    days.provider,
    days.provider_connection_id,
    record.model,
    record.currency,
    attribution.dimension,
    attribution.value,
    sum(record.input_tokens)::bigint as input_tokens,
    sum(record.output_tokens)::bigint as output_tokens,
    sum(record.request_count)::bigint as request_count,
    bool_or(record.request_count is null) as has_unknown_requests,
    sum(record.estimated_cost) as estimated_cost,
    bool_or(record.estimated_cost is null) as has_unknown_cost,
    count(*) as record_count
from days
inner join {{ ref('stg_raw__usage_records') }} as record
    on
        days.provider_connection_id = record.provider_connection_id
        and days.granularity = record.granularity
        and record.timestamp >= days.day_start
        and record.timestamp < days.day_start + interval '24 hours'
cross join
    lateral (
        values
        {% for name, value in dimensions.items() -%}
        ('{{ name }}', {{ value }}){{ ',' if not loop.last }}
        {% endfor %}
    ) as attribution (dimension, value)
group by
    days.day_start, days.org_id, days.provider, days.provider_connection_id, record.model, record.currency,
    attribution.dimension, attribution.value
