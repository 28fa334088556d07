-- Usage of each period in which there was any: one pass over the usage of each stretch.
select
    schedule.quota_id,
    app.quota_period_start(
        schedule.period_type, schedule.period_reset_day, schedule.period_reset_hour, usage.counted_at
    ) as period_start,
    {{ quota_usage('usage') }}
from {{ ref('int_quota_schedules') }} as schedule
inner join {{ ref('stg_app__organizations') }} as organization on schedule.org_id = organization.org_id
cross join lateral (
    select
        scoped.counted_at,
        scoped.is_day_record,
        scoped.total_tokens,
        scoped.input_tokens,
        scoped.output_tokens,
        scoped.request_count,
        case when scoped.currency = organization.currency then scoped.estimated_cost end as estimated_cost
    from {{ ref('int_usage_by_scope') }} as scoped
    where
        scoped.org_id = schedule.org_id
        and scoped.scope_type = schedule.scope_type
        and scoped.scope_value = schedule.scope_value
        and scoped.counted_at >= schedule.schedule_start
        and scoped.counted_at < schedule.schedule_end
        and scoped.counted_at < {{ quota_moment() }}
) as usage
group by
    schedule.quota_id,
    app.quota_period_start(
        schedule.period_type, schedule.period_reset_day, schedule.period_reset_hour, usage.counted_at
    )
