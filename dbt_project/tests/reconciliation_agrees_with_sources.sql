{{ config(meta={'dagster': {'ref': {'name': 'cost_reconciliation'}}}) }}
-- The two sides of cost_reconciliation are the daily rollup and the provider's bill, per organisation, provider, UTC day and currency.
-- Compares what the last build changed (`--vars 'compare: everything'`: all).
with spans as (
    {{ built_spans(['daily_usage_rollup', 'int_connection_model_days']) }}
),

in_sources as (
    select
        daily.date,
        daily.org_id,
        daily.provider,
        daily.currency,
        sum(daily.total_tokens) as total_tokens,
        sum(daily.estimated_cost) as usage_cost,
        sum(daily.record_count) as record_count,
        null::numeric as billed_amount
    from spans
    inner join {{ ref('daily_usage_rollup') }} as daily
        on {{ in_span('daily', 'date') }}
    group by daily.date, daily.org_id, daily.provider, daily.currency
    union all
    select
        (cost.bucket_start at time zone 'UTC')::date as date,
        cost.org_id,
        cost.provider,
        cost.currency,
        0 as total_tokens,
        null as usage_cost,
        0 as record_count,
        sum(cost.amount) as billed_amount
    from spans
    inner join {{ ref('stg_app__provider_connections') }} as connection
        on spans.org_id = connection.org_id and spans.provider = connection.provider
    inner join {{ ref('stg_raw__provider_costs') }} as cost
        on
            connection.provider_connection_id = cost.provider_connection_id
            and cost.bucket_start >= lower(spans.span)
            and cost.bucket_start < upper(spans.span)
    group by (cost.bucket_start at time zone 'UTC')::date, cost.org_id, cost.provider, cost.currency
),

expected as (
    select
        date,
        org_id,
        provider,
        currency,
        sum(total_tokens) as total_tokens,
        sum(usage_cost) as usage_cost,
        sum(record_count) as record_count,
        sum(billed_amount) as billed_amount
    from in_sources
    where
        (org_id, provider) in (
            select
                api.org_id,
                api.provider
            from {{ ref('stg_app__provider_connections') }} as api
            where api.source = 'provider_api'
        )
    group by date, org_id, provider, currency
),

found as (
    select
        reconciled.date,
        reconciled.org_id,
        reconciled.provider,
        reconciled.currency,
        sum(reconciled.total_tokens) as total_tokens,
        sum(reconciled.usage_cost) as usage_cost,
        sum(reconciled.record_count) as record_count,
        sum(reconciled.billed_amount) as billed_amount
    from spans
    inner join {{ ref('cost_reconciliation') }} as reconciled
        on {{ in_span('reconciled', 'date') }}
    group by reconciled.date, reconciled.org_id, reconciled.provider, reconciled.currency
)

select
    date,
    org_id,
    provider,
    currency,
    expected.usage_cost as expected_cost,
    found.usage_cost as found_cost
from expected
full outer join found using (date, org_id, provider, currency)
where
    (expected.total_tokens, expected.usage_cost, expected.record_count, expected.billed_amount)
    is distinct from (found.total_tokens, found.usage_cost, found.record_count, found.billed_amount)
