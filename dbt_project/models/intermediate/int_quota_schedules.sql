-- Stretches of time in which a quota counted the same scope in the same kind of periods. They follow one another without gap or
-- overlap: where either changes, the new period that holds the change counts from its own start; an old period that began before
-- that ends there, and old periods that began later give way. The first stretch begins with the period that holds the quota's
-- beginning, the last ends with the current period, or with the one in which the quota was deleted.
with versions as (
    select
        *,
        jsonb_build_array(scope_type, scope_value, period_type, period_reset_day, period_reset_hour) as kind
    from {{ ref('stg_app__usage_quota_versions') }}
),

compared as (
    select
        *,
        coalesce(
            kind = lag(kind) over (partition by quota_id order by quota_version)
            and valid_from = lag(valid_to) over (partition by quota_id order by quota_version),
            false
        ) as continues
    from versions
),

numbered as (
    select
        *,
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
        *,
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
