{{ config(
    materialized='incremental',
    incremental_strategy='replace_windows',
    window_column='date',
    pre_hook=["{{ begin_changes(follows='int_connection_days', width='day') }}"],
    post_hook=["{{ end_changes() }}"],
    indexes=[{'columns': ['org_id', 'provider', 'date']}, {'columns': ['provider_connection_id', 'date']}],
) }}
-- What each connection says was used and was billed, per UTC day, model and currency: the two sides of every reconciliation.
-- All sources are here, those without authority too (correction 11); each at the width that counts (correction 9).
with days as (
    select connection_day.*
    from {{ ref('int_connection_days') }} as connection_day
    {{ in_changed_windows('connection_day', 'day_start') }}
),

used as (
    select
        days.day_start,
        days.org_id,
        days.provider,
        days.provider_connection_id,
        record.model,
        record.currency,
        max(record.model_family) as model_family,
        sum(record.input_tokens) as input_tokens,
        sum(record.output_tokens) as output_tokens,
        sum(record.total_tokens) as total_tokens,
        sum(record.request_count) as request_count,
        sum(record.estimated_cost) as usage_cost,
        sum(record.estimated_cost) filter (where record.cost_basis = 'estimate') as estimated_cost,
        sum(record.total_tokens) filter (where record.cost_basis = 'unpriced') as unpriced_tokens,
        count(*) filter (where record.cost_basis = 'unpriced') as unpriced_record_count,
        count(*) as record_count
    from days
    inner join {{ ref('stg_raw__usage_records') }} as record
        on
            days.provider_connection_id = record.provider_connection_id
            and days.granularity = record.granularity
            and record.timestamp >= days.day_start
            and record.timestamp < days.day_start + interval '24 hours'
    group by
        days.day_start, days.org_id, days.provider, days.provider_connection_id, record.model, record.currency
),

billed as (
    select
        days.day_start,
        days.org_id,
        days.provider,
        days.provider_connection_id,
        cost.model,
        cost.currency,
        sum(cost.amount) as billed_amount,
        sum(cost.amount) filter (where cost.is_for_tokens) as billed_token_amount,
        count(*) as bill_line_count
    from days
    inner join {{ ref('stg_raw__provider_costs') }} as cost
        on
            days.provider_connection_id = cost.provider_connection_id
            and cost.bucket_start >= days.day_start
            and cost.bucket_start < days.day_start + interval '24 hours'
    group by
        days.day_start, days.org_id, days.provider, days.provider_connection_id, cost.model, cost.currency
),

final as (
    select
        days.day_start,
        max(history.final_before) as final_before,
        days.provider_connection_id
    from days
    inner join {{ ref('stg_raw__sync_history') }} as history
        on
            days.provider_connection_id = history.provider_connection_id
            and days.granularity = history.granularity
            and history.window_start < days.day_start + interval '24 hours'
            and history.covered_until > days.day_start
    group by days.day_start, days.provider_connection_id
)

select
    (sides.day_start at time zone 'UTC')::date as date,
    sides.org_id,
    sides.provider,
    sides.provider_connection_id,
    sides.model,
    sides.currency,
    max(sides.model_family) as model_family,
    sum(sides.input_tokens)::bigint as input_tokens,
    sum(sides.output_tokens)::bigint as output_tokens,
    sum(sides.total_tokens)::bigint as total_tokens,
    sum(sides.request_count)::bigint as request_count,
    sum(sides.usage_cost) as usage_cost,
    sum(sides.estimated_cost) as estimated_cost,
    coalesce(sum(sides.unpriced_tokens), 0)::bigint as unpriced_tokens,
    coalesce(sum(sides.unpriced_record_count), 0)::bigint as unpriced_record_count,
    coalesce(sum(sides.record_count), 0)::bigint as record_count,
    sum(sides.billed_amount) as billed_amount,
    sum(sides.billed_token_amount) as billed_token_amount,
    coalesce(sum(sides.bill_line_count), 0)::bigint as bill_line_count,
    bool_and(days.is_complete) as is_complete,
    coalesce(sides.day_start + interval '24 hours' > max(final.final_before), true) as is_provisional
from (
    select
        used.*,
        null::numeric as billed_amount,
        null::numeric as billed_token_amount,
        null::bigint as bill_line_count
    from used
    union all
    select
        billed.day_start,
        billed.org_id,
        billed.provider,
        billed.provider_connection_id,
        billed.model,
        billed.currency,
        null as model_family,
        null as input_tokens,
        null as output_tokens,
        null as total_tokens,
        null as request_count,
        null as usage_cost,
        null as estimated_cost,
        null as unpriced_tokens,
        null as unpriced_record_count,
        null as record_count,
        billed.billed_amount,
        billed.billed_token_amount,
        billed.bill_line_count
    from billed
) as sides
inner join days
    on sides.provider_connection_id = days.provider_connection_id and sides.day_start = days.day_start
left join final
    on sides.provider_connection_id = final.provider_connection_id and sides.day_start = final.day_start
group by
    sides.day_start, sides.org_id, sides.provider, sides.provider_connection_id, sides.model, sides.currency
