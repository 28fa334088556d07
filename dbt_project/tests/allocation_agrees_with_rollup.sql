{{ config(meta={'dagster': {'ref': {'name': 'daily_usage_allocation'}}}) }}
-- Each of the six dimensions shares out the rollup's totals, no token more or less; nothing allocated is negative.
-- Compares what the last build changed (`--vars 'compare: everything'`: all).
with spans as (
    {{ built_spans(['daily_usage_rollup', 'int_connection_attribution_days']) }}
),

allocated as (
    select
        allocation.date,
        allocation.org_id,
        allocation.provider,
        allocation.currency,
        allocation.dimension,
        sum(allocation.total_tokens) as total_tokens,
        sum(allocation.request_count) as request_count,
        sum(allocation.estimated_cost) as estimated_cost,
        min(least(allocation.input_tokens, allocation.output_tokens, allocation.request_count, allocation.estimated_cost))
            as smallest
    from spans
    inner join {{ ref('daily_usage_allocation') }} as allocation
        on {{ in_span('allocation', 'date') }}
    group by allocation.date, allocation.org_id, allocation.provider, allocation.currency, allocation.dimension
),

days as (
    select distinct
        date,
        org_id,
        provider
    from allocated
),

in_rollup as (
    select
        daily.date,
        daily.org_id,
        daily.provider,
        daily.currency,
        sum(daily.total_tokens) as total_tokens,
        sum(daily.request_count) as request_count,
        sum(daily.estimated_cost) as estimated_cost
    from {{ ref('daily_usage_rollup') }} as daily
    inner join days using (date, org_id, provider)
    group by daily.date, daily.org_id, daily.provider, daily.currency
)

select
    allocated.*,
    in_rollup.total_tokens as tokens_in_rollup
from allocated
left join in_rollup using (date, org_id, provider, currency)
where
    (allocated.total_tokens, allocated.request_count, allocated.estimated_cost)
    is distinct from (in_rollup.total_tokens, in_rollup.request_count, in_rollup.estimated_cost)
    or allocated.smallest < 0
