-- Every period of every quota, with the version that was valid when it ended (the current one's: now).
select
    schedule.quota_id,
    schedule.org_id,
    period.period_start,
    least(period.period_end, schedule.schedule_end) as period_end,
    version.quota_version
from {{ ref('int_quota_schedules') }} as schedule
cross join
    lateral app.quota_periods(
        {{ quota_schedule('schedule') }}, schedule.schedule_start, schedule.schedule_end
    ) as period
cross join lateral (
    select candidate.quota_version
    from {{ ref('stg_app__usage_quota_versions') }} as candidate
    where
        candidate.quota_id = schedule.quota_id
        and candidate.quota_version between schedule.first_version and schedule.last_version
        and (candidate.valid_from < period.period_end or candidate.quota_version = schedule.first_version)
    order by candidate.quota_version desc
    limit 1
) as version
