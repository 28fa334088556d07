{#- The periods of a quota are a chain: each begins where the one before ended, and only the last is current. A quota that was
    deleted and inserted again may have one gap; a gap inside its life is a failure. -#}
{% test periods_follow_one_another(model) %}
select
    quota_id,
    period_start,
    period_end
from (
    select
        quota_id,
        period_start,
        period_end,
        is_current,
        lead(period_start) over (partition by quota_id order by period_start) as next_start,
        max(period_end) over (partition by quota_id order by period_start rows unbounded preceding exclude current row)
        as ended_before
    from {{ model }}
) as chained
where
    period_start >= period_end
    or ended_before > period_start
    or (is_current and next_start is not null)
    or next_start is null and not is_current and exists (
        select 1
        from {{ source('app', 'usage_quota_versions') }} as version
        where version.quota_id = chained.quota_id and version.valid_to is null
    )
{% endtest %}
