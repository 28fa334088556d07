{{ config(meta={'dagster': {'ref': {'name': 'daily_usage_local'}}}) }}
-- Per organisation, provider, currency and local day daily_usage_local says what the records that count say, so that local days
-- add up to UTC days. Compares the local days that lie within what the last build changed (`--vars 'compare: everything'`: all).
with spans as (
    select
        built.org_id,
        built.provider,
        built.span,
        organization.time_zone
    from ({{ built_spans(['hourly_usage_rollup', 'daily_usage_local']) }}) as built
    inner join {{ ref('stg_app__organizations') }} as organization on built.org_id = organization.org_id
),

records as (
    select
        spans.span,
        spans.time_zone,
        case
            when record.granularity = '1d' then {{ local_date('record.timestamp', "'UTC'") }}
            else {{ local_date('record.timestamp', 'spans.time_zone') }}
        end as local_date,
        record.*
    from spans
    inner join {{ ref('int_counted_records') }} as record
        on
            spans.org_id = record.org_id
            and spans.provider = record.provider
            and record.day_start >= lower(spans.span)
            and record.day_start < upper(spans.span)
),

in_records as (
    select
        span,
        time_zone,
        org_id,
        provider,
        currency,
        local_date,
        sum(total_tokens) as total_tokens,
        sum(request_count) as request_count,
        sum(estimated_cost) as estimated_cost,
        count(*) as record_count
    from records
    group by span, time_zone, org_id, provider, currency, local_date
),

in_local_days as (
    select
        spans.span,
        spans.time_zone,
        days.org_id,
        days.provider,
        days.currency,
        days.local_date,
        sum(days.total_tokens) as total_tokens,
        sum(days.request_count) as request_count,
        sum(days.estimated_cost) as estimated_cost,
        sum(days.record_count) as record_count
    from spans
    inner join {{ ref('daily_usage_local') }} as days
        on
            spans.org_id = days.org_id
            and spans.provider = days.provider
            and days.local_date >= (lower(spans.span) at time zone 'UTC')::date - 1
            and days.local_date <= (upper(spans.span) at time zone 'UTC')::date
    group by spans.span, spans.time_zone, days.org_id, days.provider, days.currency, days.local_date
)

select
    org_id,
    provider,
    currency,
    local_date,
    in_records.total_tokens as recorded_tokens,
    in_local_days.total_tokens as local_tokens
from in_records
full outer join in_local_days using (span, time_zone, org_id, provider, currency, local_date)
where
    span @> tstzrange(
        (local_date::timestamp at time zone time_zone) - interval '3 hours',
        ((local_date + 1)::timestamp at time zone time_zone) + interval '3 hours'
    )
    and (in_records.total_tokens, in_records.request_count, in_records.estimated_cost, in_records.record_count)
    is distinct from (
        in_local_days.total_tokens, in_local_days.request_count, in_local_days.estimated_cost, in_local_days.record_count
    )
