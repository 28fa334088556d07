-- Usage of each period in which there was any. The subquery is grouped so that PostgreSQL runs it once per stretch, reading only
-- the branch of its scope by the index; `counted` first sums hours, so that few moments are turned into periods.
select
    schedule.quota_id,
    usage.period_start,
    usage.total_tokens,
    usage.input_tokens,
    usage.output_tokens,
    usage.total_requests,
    usage.requests_are_partial,
    usage.estimated_cost,
    usage.last_day_record
from {{ ref('int_quota_schedules') }} as schedule
inner join {{ ref('stg_app__organizations') }} as organization on schedule.org_id = organization.org_id
cross join lateral (
    select
        app.quota_period_start({{ quota_schedule('schedule') }}, counted.counted_at) as period_start,
        {{ quota_usage('counted') }}
    from (
        select
            scoped.counted_at,
            scoped.is_day_record,
            scoped.request_count is null and scoped.total_tokens > 0 as is_partial,
            sum(scoped.total_tokens) as total_tokens,
            sum(scoped.input_tokens) as input_tokens,
            sum(scoped.output_tokens) as output_tokens,
            sum(scoped.request_count) as request_count,
            sum(scoped.estimated_cost) filter (where scoped.currency = organization.currency) as estimated_cost
        from {{ ref('int_usage_by_scope') }} as scoped
        where
            scoped.org_id = schedule.org_id
            and scoped.scope_type = schedule.scope_type
            and scoped.scope_value = schedule.scope_value
            and scoped.counted_at >= schedule.schedule_start
            and scoped.counted_at < schedule.schedule_end
            and scoped.counted_at < {{ quota_moment() }}
        group by
            scoped.counted_at,
            scoped.is_day_record,
            scoped.request_count is null and scoped.total_tokens > 0
    ) as counted
    group by
        app.quota_period_start({{ quota_schedule('schedule') }}, counted.counted_at)
) as usage
