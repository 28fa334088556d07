{{ config(meta={'dagster': {'ref': {'name': 'user_activity'}}}) }}
-- Per organisation and UTC day the rows of user_activity add up to the daily rollup, cost per currency, and so do the models and
-- the features in them. Compares the days that the last build changed for any provider (`--vars 'compare: everything'`: all).
{%- set measures = {
    'total_tokens': 'total_tokens', 'input_tokens': 'input_tokens', 'output_tokens': 'output_tokens',
    'cached_tokens': 'cached_input_tokens', 'request_count': 'request_count', 'error_count': 'error_count',
    'total_latency_ms': 'total_latency_ms', 'unpriced_tokens': 'unpriced_tokens', 'record_count': 'record_count',
} -%}
{%- set compared = measures.keys() | list + ['model_tokens', 'model_requests', 'feature_tokens', 'feature_requests'] %}
with spans as (
    {{ built_spans(['int_user_days', 'daily_usage_rollup']) }}
),

-- A day counts where every provider's part of it may be compared: in no change later than the builds.
days as (
    select distinct
        spans.org_id,
        (generated.day_start at time zone 'UTC')::date as date
    from spans
    cross join
        lateral generate_series(
            lower(spans.span), upper(spans.span) - interval '1 microsecond', interval '24 hours'
        ) as generated (day_start)
    where not exists (
        select 1
        from {{ source('raw', 'usage_changes') }} as later
        where
            later.org_id = spans.org_id
            and later.window_start < generated.day_start + interval '24 hours'
            and later.window_end > generated.day_start
            and later.change_number > (
                select min(progress.change_number)
                from {{ source('raw', 'model_progress') }} as progress
                where progress.model in ('int_user_days', 'daily_usage_rollup')
            )
    )
    -- Nor where records of any provider have expired: a user's day over all of them is not computed anew from then on.
    and not exists (
        select 1
        from {{ source('raw', 'retention_horizon') }} as horizon
        where horizon.org_id = spans.org_id and generated.day_start < horizon.kept_from
    )
),

in_activity as (
    select
        activity.org_id,
        activity.activity_date as date,
        {% for measure in measures -%}
        sum(activity.{{ measure }}) as {{ measure }},
        {% endfor -%}
        sum(of_models.tokens) as model_tokens,
        sum(of_models.requests) as model_requests,
        sum(of_features.tokens) as feature_tokens,
        sum(of_features.requests) as feature_requests
    from days
    inner join {{ ref('user_activity') }} as activity
        on days.org_id = activity.org_id and days.date = activity.activity_date
    {% for part in ['model', 'feature'] -%}
    cross join
        lateral (
            select
                sum((usage.value ->> 'tokens')::bigint) as tokens,
                sum((usage.value ->> 'requests')::bigint) as requests
            from jsonb_each(activity.{{ part }}_usage) as usage
        ) as of_{{ part }}s
    {% endfor -%}
    group by activity.org_id, activity.activity_date
),

in_rollup as (
    select
        daily.org_id,
        daily.date,
        {% for measure, name in measures.items() -%}
        sum(daily.{{ name }}) as {{ measure }},
        {% endfor -%}
        sum(daily.total_tokens) as model_tokens,
        sum(daily.request_count) as model_requests,
        sum(daily.total_tokens) as feature_tokens,
        sum(daily.request_count) as feature_requests
    from days
    inner join {{ ref('daily_usage_rollup') }} as daily
        on days.org_id = daily.org_id and days.date = daily.date
    group by daily.org_id, daily.date
),

cost_in_activity as (
    select
        activity.org_id,
        activity.activity_date as date,
        cost.key as currency,
        sum(cost.value::numeric) as estimated_cost
    from days
    inner join {{ ref('user_activity') }} as activity
        on days.org_id = activity.org_id and days.date = activity.activity_date
    cross join lateral jsonb_each_text(activity.cost_by_currency) as cost
    group by activity.org_id, activity.activity_date, cost.key
),

cost_in_rollup as (
    select
        daily.org_id,
        daily.date,
        daily.currency,
        sum(daily.estimated_cost) as estimated_cost
    from days
    inner join {{ ref('daily_usage_rollup') }} as daily
        on days.org_id = daily.org_id and days.date = daily.date
    where daily.estimated_cost is not null
    group by daily.org_id, daily.date, daily.currency
)

select
    org_id,
    date,
    'usage' as what
from in_activity
full outer join in_rollup using (org_id, date)
where
    false
    {% for measure in compared -%}
    or in_activity.{{ measure }} is distinct from in_rollup.{{ measure }}
    {% endfor -%}
union all
select
    org_id,
    date,
    'cost in ' || currency as what
from cost_in_activity
full outer join cost_in_rollup using (org_id, date, currency)
where cost_in_activity.estimated_cost is distinct from cost_in_rollup.estimated_cost
