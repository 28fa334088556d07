{{ config(
    materialized='incremental',
    incremental_strategy='replace_windows',
    window_column='day_start',
    pre_hook=["{{ begin_changes(width='day') }}"],
    post_hook=["{{ end_changes() }}"],
    indexes=[
        {'columns': ['provider_connection_id', 'day_start'], 'unique': true},
        {'columns': ['org_id', 'provider', 'day_start']},
        {'columns': ['decided_at']},
    ],
) }}
-- Correction 9: per connection and UTC day the finest complete granularity counts. Complete: the windows that syncs of that
-- granularity completed cover the day, or as much of it as any sync has seen. Where none is complete, the one that covers
-- the most whole hours (ties: the finest); where nothing is covered, the finest with records.
with {% if not is_incremental() -%}
recorded as (
    select distinct
        provider_connection_id,
        date_trunc('day', timestamp, 'UTC') as day_start,
        granularity
    from {{ ref('stg_raw__usage_records') }}
),

{% endif -%}
days as (
    {% if is_incremental() %}
    select
        connection.org_id,
        connection.provider,
        connection.provider_connection_id,
        generated.day_start
    from {{ this.identifier }}_windows as changed
    inner join {{ ref('stg_app__provider_connections') }} as connection
        on changed.org_id = connection.org_id and changed.provider = connection.provider
    cross join lateral generate_series(
        changed.window_start, changed.window_end - interval '1 microsecond', interval '24 hours'
    ) as generated (day_start)
    {% else %}
    select
        connection.org_id,
        connection.provider,
        connection.provider_connection_id,
        seen.day_start
    from (
        select
            provider_connection_id,
            day_start
        from recorded
        union
        select
            history.provider_connection_id,
            generated.day_start
        from {{ ref('stg_raw__sync_history') }} as history
        cross join lateral generate_series(
            date_trunc('day', history.window_start, 'UTC'),
            history.covered_until - interval '1 microsecond',
            interval '24 hours'
        ) as generated (day_start)
    ) as seen
    inner join {{ ref('stg_app__provider_connections') }} as connection
        on seen.provider_connection_id = connection.provider_connection_id
    {% endif %}
),

{% if is_incremental() -%}
-- One range of the records' key for each day. A join would let the planner, who cannot know how few days changed, read
-- the whole table (docs/decisions/0004).
recorded as (
    select
        days.provider_connection_id,
        days.day_start,
        of_day.granularity
    from days
    cross join lateral (
        select distinct record.granularity
        from {{ ref('stg_raw__usage_records') }} as record
        where
            record.provider_connection_id = days.provider_connection_id
            and record.timestamp >= days.day_start
            and record.timestamp < days.day_start + interval '24 hours'
    ) as of_day
),

{% endif -%}
covered as (
    select
        days.provider_connection_id,
        days.day_start,
        history.granularity,
        range_agg(tstzrange(history.window_start, history.covered_until))
        * tstzmultirange(tstzrange(days.day_start, days.day_start + interval '24 hours')) as spans,
        max(history.covered_until) as seen_until
    from days
    inner join {{ ref('stg_raw__sync_history') }} as history
        on
            days.provider_connection_id = history.provider_connection_id
            and history.window_start < days.day_start + interval '24 hours'
            and history.covered_until > days.day_start
    group by days.provider_connection_id, days.day_start, history.granularity
),

candidates as (
    select
        provider_connection_id,
        day_start,
        granularity,
        coalesce(covered.spans, '{}'::tstzmultirange) as spans,
        least(
            day_start + interval '24 hours',
            max(covered.seen_until) over (partition by provider_connection_id, day_start)
        ) as seen_until
    from recorded
    full outer join covered using (provider_connection_id, day_start, granularity)
),

judged as (
    select
        candidates.provider_connection_id,
        candidates.day_start,
        candidates.granularity,
        coalesce(
            candidates.spans @> tstzrange(candidates.day_start, candidates.seen_until), false
        ) as is_complete,
        (
            select count(*)::integer
            from generate_series(0, 23) as hour_of_day (number)
            where candidates.spans @> tstzrange(
                candidates.day_start + make_interval(hours => hour_of_day.number),
                candidates.day_start + make_interval(hours => hour_of_day.number + 1)
            )
        ) as covered_hours
    from candidates
),

chosen as (
    select distinct on (provider_connection_id, day_start)
        provider_connection_id,
        day_start,
        granularity,
        is_complete,
        covered_hours
    from judged
    order by
        provider_connection_id asc,
        day_start asc,
        is_complete desc,
        case when is_complete then 0 else covered_hours end desc,
        array_position(array['1m', '1h', '1d'], granularity) asc
)

select
    days.org_id,
    days.provider,
    days.provider_connection_id,
    days.day_start,
    chosen.granularity,
    chosen.is_complete,
    chosen.covered_hours,
    {% if is_incremental() -%}
    case when before.granularity = chosen.granularity then before.decided_at else {{ changes_to() }} end as decided_at
    {%- else -%}
    {{ changes_to() }} as decided_at
    {%- endif %}
from days
inner join chosen
    on days.provider_connection_id = chosen.provider_connection_id and days.day_start = chosen.day_start
{% if is_incremental() %}
left join {{ this }} as before
    on days.provider_connection_id = before.provider_connection_id and days.day_start = before.day_start
{% endif %}
