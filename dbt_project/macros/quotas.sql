{#- The four limits of a quota (correction 29): the usage that each is about, its own column, and the prefix of what is said of it. -#}
{% macro quota_limits() -%}
    {{ return([
        ('total_tokens', 'token_limit', 'token'),
        ('total_requests', 'request_limit', 'request'),
        ('input_tokens', 'input_token_limit', 'input_token'),
        ('output_tokens', 'output_token_limit', 'output_token'),
    ]) }}
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
    {{ usage }}::double precision / {{ limit }} * 100
{%- endmacro %}

{#- Whether any limit is passed (exactly on it is not): true, false, or NULL where a partial count of requests cannot tell. -#}
{% macro any_limit_passed(usage_alias, limit_alias, prefix='', partial='requests_are_partial') -%}
    (
        {% for usage, limit, _ in quota_limits() -%}
        {% set used, allowed = usage_alias ~ '.' ~ prefix ~ usage, limit_alias ~ '.' ~ limit -%}
        case
            when {{ allowed }} is null then false
            when {{ used }} > {{ allowed }} then true
            {% if usage == 'total_requests' -%}
            when {{ usage_alias }}.{{ partial }} then null
            {% endif -%}
            when {{ used }} is not null then false
        end
        {{ 'or ' if not loop.last -}}
        {% endfor -%}
    )
{%- endmacro %}
