-- How much of usage is attributed, per dimension. A view: it is sums of small marts, and follows them without a build.
{%- set dimensions = {
    'team': 'team_id', 'project': 'project_id', 'cost_center': 'cost_center_id', 'feature': 'feature',
    'environment': 'environment',
} -%}
{%- set measures = ['total_tokens', 'request_count', 'estimated_cost'] %}
with usage as (
    select
        daily.date,
        daily.org_id,
        daily.provider,
        daily.currency,
        dimension.name as dimension,
        dimension.is_attributed,
        daily.total_tokens,
        daily.request_count,
        daily.estimated_cost
    from {{ ref('daily_usage_rollup') }} as daily
    cross join
        lateral (
            values
            {% for name, column in dimensions.items() -%}
            ('{{ name }}', daily.{{ column }} is not null){{ ',' if not loop.last }}
            {% endfor %}
        ) as dimension (name, is_attributed)
    {% for name, column, relation in [
        ('user', 'user_id', ref('daily_usage_by_user')), ('api_key', 'api_key_id', ref('daily_usage_by_api_key'))
    ] -%}
    union all
    select
        date,
        org_id,
        provider,
        currency,
        '{{ name }}' as dimension,
        {{ column }} is not null as is_attributed,
        total_tokens,
        request_count,
        estimated_cost
    from {{ relation }}
    {% endfor -%}
),

-- Nothing attributed is 0 where the whole is known.
summed as (
    select
        {% for measure in measures -%}
        coalesce(sum({{ measure }}) filter (where is_attributed), 0 * sum({{ measure }})) as attributed_{{ measure }},
        sum({{ measure }}) as all_{{ measure }},
        {% endfor -%}
        date,
        org_id,
        provider,
        dimension,
        currency
    from usage
    group by date, org_id, provider, dimension, currency
)

select
    date,
    org_id,
    provider,
    dimension,
    currency,
    attributed_total_tokens::bigint as attributed_tokens,
    all_total_tokens::bigint as total_tokens,
    attributed_total_tokens / nullif(all_total_tokens, 0)::double precision * 100 as attributed_tokens_pct,
    attributed_request_count::bigint as attributed_requests,
    all_request_count::bigint as total_requests,
    attributed_request_count / nullif(all_request_count, 0)::double precision * 100 as attributed_requests_pct,
    attributed_estimated_cost as attributed_cost,
    all_estimated_cost as total_cost,
    (attributed_estimated_cost / nullif(all_estimated_cost, 0) * 100)::double precision as attributed_cost_pct
from summed
