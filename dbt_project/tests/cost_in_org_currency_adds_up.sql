{{ config(meta={'dagster': {'ref': {'name': 'daily_cost_in_org_currency'}}}) }}
-- Per organisation, provider, UTC day and currency the costs are the rollup's, each converted at one rate. Compares what the last
-- build changed (`--vars 'compare: everything'`: all).
with spans as (
    {{ built_spans(['daily_usage_rollup']) }}
),

in_rollup as (
    select
        daily.date,
        daily.org_id,
        daily.provider,
        daily.currency,
        sum(daily.estimated_cost) as estimated_cost
    from spans
    inner join {{ ref('daily_usage_rollup') }} as daily
        on {{ in_span('daily', 'date') }}
    group by daily.date, daily.org_id, daily.provider, daily.currency
),

converted as (
    select
        costs.date,
        costs.org_id,
        costs.provider,
        costs.currency,
        sum(costs.estimated_cost) as estimated_cost,
        sum(costs.cost_in_org_currency) as cost_in_org_currency,
        max(costs.exchange_rate) as exchange_rate,
        count(distinct costs.exchange_rate) as rates
    from spans
    inner join {{ ref('daily_cost_in_org_currency') }} as costs
        on {{ in_span('costs', 'date') }}
    group by costs.date, costs.org_id, costs.provider, costs.currency
)

select
    date,
    org_id,
    provider,
    currency,
    in_rollup.estimated_cost as cost_in_rollup,
    converted.estimated_cost as cost_converted,
    converted.cost_in_org_currency
from in_rollup
full outer join converted using (date, org_id, provider, currency)
where
    in_rollup.estimated_cost is distinct from converted.estimated_cost
    or converted.rates > 1
    or converted.cost_in_org_currency is distinct from converted.estimated_cost * converted.exchange_rate
