-- Correction 11, the other way round: only one source counts, and another may know whose usage it was. What the source that counts
-- does not attribute itself is spread over what the other one saw, in proportion, and never more of it than the other one saw.
-- A view: it is arithmetic over small tables, and follows a change of authority without a build.
{%- set group = ['date', 'org_id', 'provider', 'model', 'dimension'] %}
{%- set amounts = ['input_tokens', 'output_tokens', 'request_count', 'estimated_cost'] %}
-- Looked up, not joined: the planner takes equalities of several columns for independent, expects one row, and then joins all that
-- follows row by row.
with names as materialized (
    select jsonb_object_agg(jsonb_build_array(org_id, provider, model)::text, canonical_model) as of_model
    from {{ ref('dim_models') }}
),

authorities as materialized (
    select jsonb_object_agg(jsonb_build_array(org_id, provider)::text, source) as of_provider
    from {{ ref('int_usage_authority') }}
),

said as materialized (
    select
        days.date,
        days.org_id,
        days.provider,
        names.of_model ->> jsonb_build_array(days.org_id, days.provider, days.model)::text as model,
        days.dimension,
        days.value,
        days.currency,
        connection.source,
        connection.source = authorities.of_provider ->> jsonb_build_array(days.org_id, days.provider)::text as is_counted,
        days.input_tokens,
        days.output_tokens,
        days.request_count,
        days.has_unknown_requests,
        days.estimated_cost,
        days.has_unknown_cost
    from {{ ref('int_connection_attribution_days') }} as days
    inner join {{ ref('stg_app__provider_connections') }} as connection
        on days.provider_connection_id = connection.provider_connection_id
    cross join names
    cross join authorities
),

counted as (
    select
        {{ group | join(',\n        ') }},
        value,
        currency,
        max(source) as source,
        sum(input_tokens) as input_tokens,
        sum(output_tokens) as output_tokens,
        sum(request_count) as request_count,
        sum(estimated_cost) as estimated_cost
    from said
    where is_counted
    group by {{ group | join(', ') }}, value, currency
),

-- Of several other sources the one that is nearest to the provider and names anybody that day.
chosen as (
    select distinct on (date, org_id, provider, dimension)
        date,
        org_id,
        provider,
        dimension,
        source
    from said
    where not is_counted and value is not null
    order by
        date asc, org_id asc, provider asc, dimension asc,
        array_position(array['provider_api', 'gateway', 'events', 'file'], source) asc
),

seen as (
    select
        {{ group | join(',\n        ') }},
        value,
        source,
        sum(input_tokens) as input_tokens,
        sum(output_tokens) as output_tokens,
        sum(request_count) as request_count,
        bool_or(has_unknown_requests) as has_unknown_requests,
        sum(estimated_cost) as estimated_cost,
        bool_or(has_unknown_cost) or count(distinct currency) > 1 as has_unknown_cost
    from said
    inner join chosen using (date, org_id, provider, dimension, source)
    where not is_counted
    group by {{ group | join(', ') }}, value, source
),

-- A weight is what a measure is spread by; where the other source does not know it of all its usage, by tokens.
weighed as (
    select
        {{ group | join(',\n        ') }},
        value,
        source,
        input_tokens as input_weight,
        output_tokens as output_weight,
        input_tokens + output_tokens as token_weight,
        case when bool_or(has_unknown_requests) over of_group then input_tokens + output_tokens else request_count end
            as request_weight,
        case
            when bool_or(has_unknown_cost) over of_group or sum(estimated_cost) over of_group = 0
                then input_tokens + output_tokens
            else estimated_cost
        end as cost_weight,
        bool_or(has_unknown_requests) over of_group as requests_by_tokens
    from seen
    window of_group as (partition by {{ group | join(', ') }})
),

-- Ends of the shares, laid end to end: rounding their edges, and not their widths, keeps the sum exact.
shares as materialized (
    select
        {% for weight in ['input', 'output', 'token', 'request', 'cost'] -%}
        {{ weight }}_weight,
        sum({{ weight }}_weight) over in_order as {{ weight }}_edge,
        sum({{ weight }}_weight) over of_group as {{ weight }}_seen,
        {% endfor -%}
        {{ group | join(',\n        ') }},
        value,
        source,
        requests_by_tokens
    from weighed
    window
        of_group as (partition by {{ group | join(', ') }}),
        in_order as (
            partition by {{ group | join(', ') }}
            order by value nulls last
            rows between unbounded preceding and current row
        )
),

unattributed as (
    select
        *,
        sum(input_tokens) over of_group as all_input_tokens,
        sum(output_tokens) over of_group as all_output_tokens,
        sum(input_tokens + output_tokens) over of_group as all_tokens,
        sum(request_count) over of_group as all_request_count
    from counted
    where value is null
    window of_group as (partition by {{ group | join(', ') }})
),

spread as (
    select
        unattributed.{{ group | join(',\n        unattributed.') }},
        shares.value,
        unattributed.currency,
        shares.source,
        {% for measure, weight in [('input_tokens', 'input'), ('output_tokens', 'output')] -%}
        {{ share_between_edges(
            'unattributed.' ~ measure, weight, 'greatest(shares.' ~ weight ~ '_seen, unattributed.all_' ~ measure ~ ')', 0
        ) }} as {{ measure }},
        {% endfor -%}
        {{ share_between_edges(
            'unattributed.request_count', 'request',
            'greatest(shares.request_seen, case when shares.requests_by_tokens then unattributed.all_tokens'
            ~ ' else unattributed.all_request_count end)', 0
        ) }} as request_count,
        {{ share_between_edges(
            'unattributed.estimated_cost * ' ~ seen_part(), 'cost', 'shares.cost_seen', 12
        ) }} as estimated_cost
    from unattributed
    inner join shares using ({{ group | join(', ') }})
    where shares.value is not null
),

explained as (
    select
        {% for amount in amounts -%}
        sum({{ amount }}) as {{ amount }},
        {% endfor -%}
        {{ group | join(',\n        ') }},
        currency
    from spread
    group by {{ group | join(', ') }}, currency
),

left_over as (
    select
        unattributed.{{ group | join(',\n        unattributed.') }},
        unattributed.currency,
        unattributed.source,
        {% for amount in amounts -%}
        unattributed.{{ amount }} - coalesce(explained.{{ amount }}, 0) as {{ amount }},
        {% endfor -%}
        explained.currency is not null as is_explained_in_part
    from unattributed
    left join explained using ({{ group | join(', ') }}, currency)
),

parts as (
    select
        {{ group | join(',\n        ') }},
        value,
        'direct' as basis,
        source,
        currency,
        {{ amounts | join(',\n        ') }}
    from counted
    where value is not null
    union all
    select
        {{ group | join(',\n        ') }},
        value,
        'allocated' as basis,
        source,
        currency,
        {{ amounts | join(',\n        ') }}
    from spread
    where (input_tokens, output_tokens, coalesce(request_count, 0), coalesce(estimated_cost, 0)) <> (0, 0, 0, 0)
    union all
    select
        {{ group | join(',\n        ') }},
        null as value,
        'unattributed' as basis,
        source,
        currency,
        {{ amounts | join(',\n        ') }}
    from left_over
    where
        not is_explained_in_part
        or (input_tokens, output_tokens, coalesce(request_count, 0), coalesce(estimated_cost, 0)) <> (0, 0, 0, 0)
)

select
    date,
    org_id,
    provider,
    model,
    dimension,
    value,
    basis,
    source,
    currency,
    input_tokens::bigint as input_tokens,
    output_tokens::bigint as output_tokens,
    (input_tokens + output_tokens)::bigint as total_tokens,
    request_count::bigint as request_count,
    estimated_cost
from parts
