-- The usage that counts (correction 11) beside the bill, by canonical model (correction 43), per currency: never summed over two.
-- A view over a few rows per day: an alias or an authority that changes holds for all of history at once.
with names as materialized (
    select
        org_id,
        provider,
        model,
        canonical_model
    from {{ ref('dim_models') }}
),

sides as (
    select
        days.*,
        names.canonical_model,
        connection.source = authority.source as is_counted,
        connection.source = 'provider_api' as brings_bills,
        sum(days.bill_line_count) over (partition by days.provider_connection_id, days.date) > 0 as has_bill,
        bool_or(days.unpriced_record_count > 0 or days.usage_cost <> 0) over (
            partition by days.provider_connection_id, days.date
        ) as has_cost
    from {{ ref('int_connection_model_days') }} as days
    inner join {{ ref('stg_app__provider_connections') }} as connection
        on days.provider_connection_id = connection.provider_connection_id
    inner join {{ ref('int_usage_authority') }} as authority
        on days.org_id = authority.org_id and days.provider = authority.provider
    left join names
        on days.org_id = names.org_id and days.provider = names.provider and days.model = names.model
    where
        (connection.source = authority.source or connection.source = 'provider_api')
        -- Only a provider's own API brings a bill.
        and (days.org_id, days.provider) in (
            select
                api.org_id,
                api.provider
            from {{ ref('stg_app__provider_connections') }} as api
            where api.source = 'provider_api'
        )
),

-- The bill of a day is there when every connection that has one to bring, and whose usage counts and costs, brought one.
days as (
    select
        *,
        bool_or(is_counted) over of_day and bool_and(is_complete) over of_day as is_usage_synced,
        bool_or(has_bill) over of_day
        and bool_and(is_complete) over of_day
        and bool_and(has_bill or not (is_counted and brings_bills and coalesce(has_cost, false))) over of_day as is_bill_synced,
        bool_or(is_provisional) over of_day as is_day_provisional
    from sides
    window of_day as (partition by org_id, provider, date)
),

models as (
    select
        date,
        org_id,
        provider,
        canonical_model as model,
        currency,
        sum(usage_cost) filter (where is_counted) as usage_cost,
        sum(estimated_cost) filter (where is_counted) as estimated_cost,
        coalesce(sum(total_tokens) filter (where is_counted), 0) as total_tokens,
        coalesce(sum(unpriced_tokens) filter (where is_counted), 0) as unpriced_tokens,
        coalesce(sum(unpriced_record_count) filter (where is_counted), 0) as unpriced_record_count,
        coalesce(sum(record_count) filter (where is_counted), 0) as record_count,
        sum(billed_amount) as billed_amount,
        sum(billed_token_amount) as billed_token_amount,
        sum(bill_line_count) as bill_line_count,
        bool_and(is_usage_synced) as is_usage_synced,
        bool_and(is_bill_synced) as is_bill_synced,
        bool_or(is_day_provisional) as is_provisional
    from days
    where is_counted or bill_line_count > 0
    group by date, org_id, provider, canonical_model, currency
),

compared as (
    select
        *,
        -- Nothing said is nothing used, or nothing billed, only where that side was read.
        case
            when record_count > 0 then usage_cost
            when is_usage_synced then 0
        end as usage_side,
        case
            when bill_line_count > 0 then billed_amount
            when is_bill_synced then 0
        end as bill_side,
        -- One side speaks of the model in this currency only, the other in other currencies only.
        (record_count = 0 and sum(record_count) over of_model > 0 and sum(bill_line_count) over of_model = bill_line_count)
        or (bill_line_count = 0 and sum(bill_line_count) over of_model > 0 and sum(record_count) over of_model = record_count)
            as is_in_other_currency
    from models
    window of_model as (partition by date, org_id, provider, model)
),

-- What usage is expected to cost: no more than the bill; no less than the bill's lines for tokens, which usage counts too, unless
-- tokens have no price, or usage of the model counts no tokens at all (images, seconds).
expected as (
    select
        *,
        coalesce(usage_side, 0) as cost,
        coalesce(bill_side, 0) as at_most,
        case
            when unpriced_tokens > 0 or (unpriced_record_count > 0 and total_tokens = 0) then least(0, bill_side)
            else least(coalesce(billed_token_amount, 0), bill_side)
        end as at_least
    from compared
)

select
    date,
    org_id,
    provider,
    model,
    currency,
    billed_amount,
    estimated_cost,
    usage_cost,
    bill_side - usage_side as difference,
    (bill_side - usage_side) / nullif(bill_side, 0) * 100 as difference_pct,
    case
        when is_usage_synced and is_bill_synced and not is_provisional and not is_in_other_currency
            then greatest(least(at_most - cost, 0), at_least - cost)
    end as unexplained_amount,
    total_tokens::bigint as total_tokens,
    unpriced_tokens::bigint as unpriced_tokens,
    unpriced_record_count::bigint as unpriced_record_count,
    record_count::bigint as record_count,
    bill_line_count::bigint as bill_line_count,
    is_provisional,
    case
        when not (is_usage_synced and is_bill_synced) then 'missing_sync'
        when is_provisional then 'provisional'
        when is_in_other_currency then 'currency_mismatch'
        when bill_side = usage_side then null
        when unpriced_record_count > 0 and cost <= at_most then 'unpriced_model'
        when
            bill_line_count > 0
            and (record_count = 0 or billed_amount is distinct from billed_token_amount)
            and cost <= at_most
            then 'billed_not_in_usage'
        when record_count > 0 and bill_line_count = 0 then 'usage_not_billed'
    end as reason
from expected
