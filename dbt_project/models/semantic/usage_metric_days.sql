-- Correction 42: the days over which a rate is reckoned. Every value of the dimensions has all days of its organisation, so
-- that the rates of the parts add up to the rate of the whole.
with bounds as (
    select
        org_id,
        min(date) as first_date,
        max(date) as last_date
    from {{ ref('daily_usage_rollup') }}
    group by org_id
),

seen as (
    select distinct {{ metric_dimensions() | join(', ') }}
    from {{ ref('daily_usage_rollup') }}
)

select
    bounds.first_date + day.number as date,
    seen.*
from seen
inner join bounds on seen.org_id = bounds.org_id
cross join lateral generate_series(0, bounds.last_date - bounds.first_date) as day (number)
