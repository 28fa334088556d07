{{ config(meta={'dagster': {'ref': {'name': 'attribution_coverage'}}}) }}
-- Each of the seven dimensions covers all usage once: its totals are the rollup's, and its parts are not more than its totals.
-- Compares what the last build changed (`--vars 'compare: everything'`: all).
with spans as (
    {{ built_spans(['daily_usage_rollup', 'daily_usage_by_user', 'daily_usage_by_api_key']) }}
),

in_rollup as (
    select
        daily.date,
        daily.org_id,
        daily.provider,
        daily.currency,
        dimension.name as dimension,
        sum(daily.total_tokens) as total_tokens,
        sum(daily.request_count) as request_count,
        sum(daily.estimated_cost) as estimated_cost
    from spans
    inner join {{ ref('daily_usage_rollup') }} as daily
        on {{ in_span('daily', 'date') }}
    cross join
        (
            values ('team'), ('project'), ('cost_center'), ('feature'), ('environment'), ('user'), ('api_key')
        ) as dimension (name)
    group by daily.date, daily.org_id, daily.provider, daily.currency, dimension.name
),

in_coverage as (
    select coverage.*
    from spans
    inner join {{ ref('attribution_coverage') }} as coverage
        on {{ in_span('coverage', 'date') }}
)

select
    date,
    org_id,
    provider,
    dimension,
    currency,
    in_rollup.total_tokens as tokens_in_rollup,
    in_coverage.total_tokens as tokens_in_coverage
from in_rollup
full outer join in_coverage using (date, org_id, provider, dimension, currency)
where
    (in_rollup.total_tokens, in_rollup.request_count, in_rollup.estimated_cost)
    is distinct from (in_coverage.total_tokens, in_coverage.total_requests, in_coverage.total_cost)
    or in_coverage.attributed_tokens > in_coverage.total_tokens
    or in_coverage.attributed_requests > in_coverage.total_requests
