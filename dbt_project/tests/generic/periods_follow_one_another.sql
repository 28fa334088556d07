{#- The periods of a quota are a chain: none overlaps another, and while the quota exists each begins where the one before ended
    and the last is the current one. -#}
{% test periods_follow_one_another(model) %}
with chained as (
    select
        quota_id,
        period_start,
        period_end,
        max(period_end) over (
            partition by quota_id order by period_start rows between unbounded preceding and 1 preceding
        ) as ended_before,
        row_number() over (partition by quota_id order by period_start desc) = 1 as is_last,
        exists (
            select 1
            from {{ ref('stg_app__usage_quota_versions') }} as deleted
            where deleted.quota_id = period.quota_id and deleted.valid_to <= period.period_start
                and not exists (
                    select 1
                    from {{ ref('stg_app__usage_quota_versions') }} as following
                    where following.quota_id = deleted.quota_id and following.valid_from = deleted.valid_to
                )
        ) as was_deleted,
        exists (
            select 1
            from {{ ref('stg_app__usage_quota_versions') }} as version
            where version.quota_id = period.quota_id and version.valid_to is null
        ) as exists_still
    from {{ model }} as period
)

select *
from chained
where
    period_start >= period_end
    or ended_before > period_start
    or (ended_before < period_start and not was_deleted)
    or (is_last and exists_still and period_end <= {{ quota_moment() }})
{% endtest %}
