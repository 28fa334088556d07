-- Money keeps its currency; beside it stands the same in the currency that the organisation reports in, at the rate of the day, else
-- the newest earlier one. Without a rate it is NULL, never 0 and never the other currency's figure. A view: a rate that comes
-- later holds at once.
with costs as (
    select
        date,
        org_id,
        provider,
        model,
        team_id,
        project_id,
        cost_center_id,
        feature,
        environment,
        currency,
        sum(estimated_cost) as estimated_cost,
        sum(unpriced_tokens)::bigint as unpriced_tokens
    from {{ ref('daily_usage_rollup') }}
    group by date, org_id, provider, model, team_id, project_id, cost_center_id, feature, environment, currency
)

select
    costs.date,
    costs.org_id,
    costs.provider,
    costs.model,
    costs.team_id,
    costs.project_id,
    costs.cost_center_id,
    costs.feature,
    costs.environment,
    costs.currency,
    costs.estimated_cost,
    organization.currency as org_currency,
    case when costs.currency = organization.currency then 1 else newest.rate end as exchange_rate,
    case when costs.currency = organization.currency then costs.date else newest.rate_date end as rate_date,
    costs.estimated_cost
    * case when costs.currency = organization.currency then 1 else newest.rate end as cost_in_org_currency,
    costs.currency <> organization.currency and newest.rate is null as missing_rate,
    costs.unpriced_tokens
from costs
inner join {{ ref('stg_app__organizations') }} as organization on costs.org_id = organization.org_id
left join lateral (
    select
        rates.rate,
        rates.rate_date
    from {{ source('app', 'exchange_rates') }} as rates
    where
        rates.from_currency = costs.currency
        and rates.to_currency = organization.currency
        and rates.rate_date <= costs.date
    order by rates.rate_date desc
    limit 1
) as newest on true
