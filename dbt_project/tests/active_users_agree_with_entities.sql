{{ config(meta={'dagster': {'ref': {'name': 'active_users'}}}) }}
-- The users of a day, and of the 30 days up to it, counted directly. Compares the days that the last build changed
-- (`--vars 'compare: everything'`: all); and every day with usage has its row.
with days as (
    select distinct
        spans.org_id,
        (generated.day_start at time zone 'UTC')::date as date
    from ({{ built_spans(['active_users', 'daily_active_entities']) }}) as spans
    cross join
        lateral generate_series(
            lower(spans.span), upper(spans.span) - interval '1 microsecond', interval '24 hours'
        ) as generated (day_start)
    -- Not while the entities are ahead: the next build of active_users follows them.
    where (
        select count(distinct progress.change_number) = 1
        from {{ source('raw', 'model_progress') }} as progress
        where progress.model in ('active_users', 'daily_active_entities')
    )
),

counted as (
    select
        days.org_id,
        days.date,
        count(distinct entity.entity_id) filter (where entity.date = days.date) as daily,
        count(distinct entity.entity_id) as monthly,
        (
            select count(*) > 0
            from {{ ref('daily_active_entities') }} as used
            where used.org_id = days.org_id and used.entity_kind = 'model' and used.date = days.date
        ) as has_usage
    from days
    left join {{ ref('daily_active_entities') }} as entity
        on
            days.org_id = entity.org_id
            and entity.entity_kind = 'user'
            and entity.date > days.date - 30
            and entity.date <= days.date
    group by days.org_id, days.date
)

select
    counted.org_id,
    counted.date,
    counted.daily,
    counted.monthly,
    active.daily_active_users,
    active.monthly_active_users
from counted
left join {{ ref('active_users') }} as active
    on counted.org_id = active.org_id and counted.date = active.date
where
    (counted.has_usage and active.date is null)
    or (
        active.date is not null
        and (counted.daily, counted.monthly)
        is distinct from (coalesce(active.daily_active_users, 0), coalesce(active.monthly_active_users, 0))
    )
