{{ config(meta={'dagster': {'ref': {'name': 'cost_reconciliation'}}}) }}
-- Usage times price agrees with the bill on every final day that syncs cover, per model and for the day as a whole, but for what
-- a reason accounts for. Looks at all of history: a day that is off stays off until someone looks at it.
{%- set off_by_more = "abs(unexplained_amount) > " ~ var('reconciliation_tolerance_amount')
    ~ " and abs(unexplained_amount) > abs(coalesce(billed_amount, 0)) * " ~ var('reconciliation_tolerance_pct') ~ " / 100" %}
with models as (
    select
        date,
        org_id,
        provider,
        model,
        currency,
        billed_amount,
        unexplained_amount
    from {{ ref('cost_reconciliation') }}
),

days as (
    select
        date,
        org_id,
        provider,
        'all models' as model,
        currency,
        sum(billed_amount) as billed_amount,
        sum(unexplained_amount) as unexplained_amount
    from models
    group by date, org_id, provider, currency
)

select *
from models
where {{ off_by_more }}
union all
select *
from days
where {{ off_by_more }}
