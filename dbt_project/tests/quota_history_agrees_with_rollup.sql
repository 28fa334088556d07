{{ config(meta={'dagster': {'ref': {'name': 'quota_usage_history'}}}) }}
-- Where a period of a whole organisation is made of whole UTC days, its usage is what the daily rollup holds for those days.
-- Reads the history of every quota, so only `--vars 'compare: everything'` asks for it.
-- Materialized: joined directly, PostgreSQL may sum a quota's whole usage again for every period.
with history as materialized (
    select *
    from {{ ref('quota_usage_history') }}
    where {{ var('compare') == 'everything' }} and scope_type = 'organization'
),

compared as (
    select
        history.quota_id,
        history.period_start,
        history.total_tokens,
        history.total_requests,
        coalesce(sum(daily.total_tokens), 0) as rolled_up_tokens,
        coalesce(sum(daily.request_count), 0) as rolled_up_requests
    from history
    left join {{ ref('daily_usage_rollup') }} as daily
        on
            history.org_id = daily.org_id
            and daily.date >= (history.period_start at time zone 'UTC')::date
            and daily.date < (history.period_end at time zone 'UTC')::date
    where
        history.period_start = date_trunc('day', history.period_start, 'UTC')
        and history.period_end = date_trunc('day', history.period_end, 'UTC')
    group by history.quota_id, history.period_start, history.total_tokens, history.total_requests
)

select *
from compared
where total_tokens <> rolled_up_tokens or coalesce(total_requests, 0) <> rolled_up_requests
