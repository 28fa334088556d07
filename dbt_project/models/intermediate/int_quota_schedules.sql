-- Stretches of time in which a quota counted the same scope in the same kind of periods. They follow one another without gap or
-- overlap: where either changes, the new period that holds the change counts from its own start; an old period that began before
-- that ends there, and old periods that began later give way. The first stretch begins with the period that holds the quota's
-- beginning, the last ends with the current period, or with the one in which the quota was deleted.
with compared as (
    select
        version.*,
        (scope_type, scope_value, period_type, period_reset_day, period_reset_hour, valid_from)
        is not distinct from (
            lag(scope_type) over versions,
            lag(scope_value) over versions,
            lag(period_type) over versions,
            lag(period_reset_day) over versions,
            lag(period_reset_hour) over versions,
            lag(valid_to) over versions
        ) as continues
    from {{ ref('stg_app__usage_quota_versions') }} as version
    window versions as (partition by quota_id order by quota_version)
),

numbered as (
    select
        compared.*,
        count(*) filter (where not continues) over (partition by quota_id order by quota_version) as schedule_number
    from compared
),

stretches as (
    select
        quota_id,
        schedule_number,
        org_id,
        scope_type,
        scope_value,
        period_type,
        period_reset_day,
        period_reset_hour,
        min(quota_version) as first_version,
        max(quota_version) as last_version,
        app.quota_period_start(period_type, period_reset_day, period_reset_hour, min(valid_from)) as schedule_start,
        app.quota_period_end(
            period_type,
            period_reset_day,
            period_reset_hour,
            case
                when count(valid_to) = count(*) then max(valid_to) - interval '1 microsecond'
                else {{ quota_moment() }}
            end
        ) as last_period_end
    from numbered
    group by
        quota_id,
        schedule_number,
        org_id,
        scope_type,
        scope_value,
        period_type,
        period_reset_day,
        period_reset_hour
),

bounded as (
    select
        stretches.*,
        least(
            last_period_end,
            min(schedule_start) over (
                partition by quota_id order by schedule_number rows between 1 following and unbounded following
            )
        ) as schedule_end
    from stretches
)

select
    quota_id,
    org_id,
    scope_type,
    scope_value,
    period_type,
    period_reset_day,
    period_reset_hour,
    first_version,
    last_version,
    schedule_start,
    schedule_end
from bounded
where schedule_start < schedule_end
