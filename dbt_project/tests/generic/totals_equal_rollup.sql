{#- Per organisation, provider, currency and hour or day a mart by user or API key says what the rollup says. Looks at what the
    last build changed (`--vars 'compare: everything'`: all). -#}
{% test totals_equal_rollup(model, built_by, rollup, time_column) %}
{%- set measures = additive_measures() + ['estimated_cost', 'unpriced_tokens', 'record_count'] -%}
with spans as (
    {{ built_spans([built_by, rollup]) }}
),

{% for side, relation in [('in_parts', model), ('in_rollup', ref(rollup))] -%}
{{ side }} as (
    select
        usage.org_id,
        usage.provider,
        usage.currency,
        usage.{{ time_column }},
        {% for measure in measures -%}
        sum(usage.{{ measure }}) as {{ measure }}{{ ',' if not loop.last }}
        {% endfor %}
    from spans
    inner join {{ relation }} as usage
        on {{ in_span('usage', time_column) }}
    group by usage.org_id, usage.provider, usage.currency, usage.{{ time_column }}
){{ ',' if not loop.last }}

{% endfor -%}
select
    org_id,
    provider,
    currency,
    {{ time_column }},
    in_parts.total_tokens as tokens_in_parts,
    in_rollup.total_tokens as tokens_in_rollup
from in_parts
full outer join in_rollup using (org_id, provider, currency, {{ time_column }})
where
    (in_parts.{{ measures | join(', in_parts.') }})
    is distinct from (in_rollup.{{ measures | join(', in_rollup.') }})
{% endtest %}
