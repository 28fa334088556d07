{#- The four limits of a quota (correction 29): the usage that each is about, its own column, and the prefix of what is said of it. -#}
{% macro quota_limits() -%}
    {{ return([
        ('total_tokens', 'token_limit', 'token'),
        ('total_requests', 'request_limit', 'request'),
        ('input_tokens', 'input_token_limit', 'input_token'),
        ('output_tokens', 'output_token_limit', 'output_token'),
    ]) }}
{%- endmacro %}

{#- The kind of period, as the functions about periods take it. -#}
{% macro quota_schedule(alias) -%}
    {{ alias }}.period_type, {{ alias }}.period_reset_day, {{ alias }}.period_reset_hour
{%- endmacro %}

{#- The usage at the end of the period at the rate of the hours that usage covers (correction 22); unknown in the first hour. -#}
{% macro projected_usage(usage) -%}
    case
        when used.hours_elapsed >= 1 and used.total_tokens > 0
            then round(used.{{ usage }} * used.hours_in_period / used.hours_elapsed)::bigint
    end
{%- endmacro %}

{#- The moment as of which models about quotas speak; unit tests replace it. -#}
{% macro quota_moment() -%}app.quota_moment(){%- endmacro %}

{#- Sums over int_usage_by_scope. Usage with tokens but without a count of requests makes the requests partial: their sum is
    then a lower bound, and NULL where no source counts any. No usage at all is zero. -#}
{% macro quota_usage(alias) -%}
    coalesce(sum({{ alias }}.total_tokens), 0)::bigint as total_tokens,
    coalesce(sum({{ alias }}.input_tokens), 0)::bigint as input_tokens,
    coalesce(sum({{ alias }}.output_tokens), 0)::bigint as output_tokens,
    coalesce(
        sum({{ alias }}.request_count),
        case when sum({{ alias }}.total_tokens) > 0 then null else 0 end
    )::bigint as total_requests,
    coalesce(
        bool_or({{ alias }}.request_count is null and {{ alias }}.total_tokens > 0), false
    ) as requests_are_partial,
    sum({{ alias }}.estimated_cost) as estimated_cost,
    max({{ alias }}.counted_at) filter (where {{ alias }}.is_day_record) as last_day_record
{%- endmacro %}

{#- Usage in per cent of its limit; NULL without a limit or where the usage is unknown. -#}
{% macro utilization_pct(usage, limit) -%}
    100::double precision * {{ usage }} / {{ limit }}
{%- endmacro %}

{#- Whether any limit is passed (exactly on it is not): true, false, or NULL where a partial count of requests cannot tell.
    `table` qualifies the columns, `prefix` begins the names of the usage. -#}
{% macro any_limit_passed(table='', prefix='') -%}
    (
        {% for usage, limit, _ in quota_limits() -%}
        case
            when {{ table }}{{ limit }} is null then false
            when {{ table }}{{ prefix }}{{ usage }} > {{ table }}{{ limit }} then true
            {% if usage == 'total_requests' -%}
            when {{ table }}requests_are_partial then null
            {% endif -%}
            when {{ table }}{{ prefix }}{{ usage }} is not null then false
        end
        {{ 'or ' if not loop.last -}}
        {% endfor -%}
    )
{%- endmacro %}
