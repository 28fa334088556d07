with periods as (
    select
        period.quota_id,
        period.org_id,
        period.period_start,
        period.period_end,
        version.quota_name,
        version.scope_type,
        version.scope_value,
        -- Deleted before the period ended: no longer in force.
        version.is_active and coalesce(version.valid_to >= period.period_end, true) as is_active,
        version.token_limit,
        version.request_limit,
        version.input_token_limit,
        version.output_token_limit,
        coalesce(usage.total_tokens, 0) as total_tokens,
        case when usage.quota_id is null then 0 else usage.total_requests end as total_requests,
        coalesce(usage.input_tokens, 0) as input_tokens,
        coalesce(usage.output_tokens, 0) as output_tokens,
        coalesce(usage.requests_are_partial, false) as requests_are_partial,
        usage.estimated_cost,
        usage.last_day_record
    from {{ ref('int_quota_periods') }} as period
    inner join {{ ref('stg_app__usage_quota_versions') }} as version
        on period.quota_id = version.quota_id and period.quota_version = version.quota_version
    left join {{ ref('int_quota_period_usage') }} as usage
        on period.quota_id = usage.quota_id and period.period_start = usage.period_start
),

began as (
    select
        quota_id,
        min(valid_from) as began_at
    from {{ ref('stg_app__usage_quota_versions') }}
    group by quota_id
),

all_events as (
    select
        quota_id,
        period_start,
        kind,
        1 as event_count
    from {{ ref('stg_app__quota_events') }}
    union all
    select
        quota_id,
        period_start,
        kind,
        event_count
    from {{ ref('stg_app__quota_event_counts') }}
),

events as (
    select
        quota_id,
        period_start,
        (sum(event_count) filter (where kind = 'alert'))::bigint as alerts_sent,
        (sum(event_count) filter (where kind = 'throttle'))::bigint as throttle_events,
        (sum(event_count) filter (where kind = 'block'))::bigint as block_events
    from all_events
    group by quota_id, period_start
)

select
    md5(concat_ws(' ', periods.quota_id, extract(epoch from periods.period_start)::bigint))::uuid as id,
    periods.quota_id,
    periods.org_id,
    periods.quota_name,
    periods.scope_type,
    periods.scope_value,
    periods.period_start,
    periods.period_end,
    periods.total_tokens,
    periods.total_requests,
    periods.input_tokens,
    periods.output_tokens,
    {% for usage, limit, prefix in quota_limits() -%}
    periods.{{ limit }},
    {{ utilization_pct('periods.' ~ usage, 'periods.' ~ limit) }} as {{ prefix }}_utilization_pct,
    {% endfor -%}
    {{ any_limit_passed('periods.') }} as exceeded_limit,
    greatest(
        {% for usage, limit, prefix in quota_limits() -%}
        {{ utilization_pct('periods.' ~ usage, 'periods.' ~ limit) }}{{ ',' if not loop.last }}
        {% endfor -%}
    ) as max_utilization_pct,
    coalesce(events.alerts_sent, 0) as alerts_sent,
    coalesce(events.throttle_events, 0) as throttle_events,
    coalesce(events.block_events, 0) as block_events,
    greatest(periods.period_start, began.began_at) as created_at,
    periods.estimated_cost,
    case when periods.estimated_cost is not null then organization.currency end as currency,
    periods.is_active,
    periods.period_end > {{ quota_moment() }} as is_current,
    coalesce(
        periods.period_end > freshness.data_until
        or tstzrange(periods.period_start, periods.period_end) && freshness.provisional_spans,
        true
    ) as is_provisional,
    periods.requests_are_partial,
    periods.last_day_record is not null as includes_day_records,
    coalesce(periods.last_day_record + interval '24 hours' > periods.period_end, false) as is_approximate
from periods
inner join began on periods.quota_id = began.quota_id
inner join {{ ref('stg_app__organizations') }} as organization on periods.org_id = organization.org_id
left join events on periods.quota_id = events.quota_id and periods.period_start = events.period_start
left join {{ ref('int_usage_freshness') }} as freshness on periods.org_id = freshness.org_id
