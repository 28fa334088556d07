-- Where each quota, paused ones too, stands in its current period.
with current_periods as (
    select
        version.*,
        app.quota_period_start({{ quota_schedule('version') }}, {{ quota_moment() }}) as period_start,
        app.quota_period_end({{ quota_schedule('version') }}, {{ quota_moment() }}) as period_end
    from {{ ref('stg_app__usage_quota_versions') }} as version
    where version.valid_to is null
),

used as (
    select
        period.*,
        freshness.data_until,
        freshness.complete_until,
        usage.total_tokens,
        usage.total_requests,
        usage.input_tokens,
        usage.output_tokens,
        usage.requests_are_partial,
        usage.last_day_record,
        extract(epoch from least({{ quota_moment() }}, freshness.data_until) - period.period_start)::double precision
        / 3600 as hours_elapsed,
        extract(epoch from period.period_end - {{ quota_moment() }})::double precision / 3600 as hours_remaining,
        extract(epoch from period.period_end - period.period_start)::double precision / 3600 as hours_in_period
    from current_periods as period
    left join {{ ref('int_usage_freshness') }} as freshness on period.org_id = freshness.org_id
    cross join lateral (
        select {{ quota_usage('scoped') }}
        from {{ ref('int_usage_by_scope') }} as scoped
        where
            scoped.org_id = period.org_id
            and scoped.scope_type = period.scope_type
            and scoped.scope_value = period.scope_value
            and scoped.counted_at >= period.period_start
            and scoped.counted_at < period.period_end
            and scoped.counted_at < {{ quota_moment() }}
    ) as usage
),

projected as (
    select
        {% for usage, limit, prefix in quota_limits() -%}
        {{ projected_usage(usage) }} as projected_{{ usage }},
        {% endfor -%}
        used.*
    from used
)

select
    quota_id,
    org_id,
    quota_name,
    scope_type,
    scope_value,
    enforcement_mode,
    is_active,
    period_type,
    period_start,
    period_end,
    total_tokens,
    total_requests,
    input_tokens,
    output_tokens,
    {% for usage, limit, prefix in quota_limits() -%}
    {{ limit }},
    {{ utilization_pct(usage, limit) }} as {{ prefix }}_utilization_pct,
    case
        when {{ usage }} >= {{ limit }} then 0
        {% if usage == 'total_requests' -%}
        when requests_are_partial then null
        {% endif -%}
        else {{ limit }} - {{ usage }}
    end as {{ prefix }}s_remaining,
    projected_{{ usage }},
    {% endfor -%}
    greatest(
        {% for usage, limit, prefix in quota_limits() -%}
        {{ utilization_pct(usage, limit) }}{{ ',' if not loop.last }}
        {% endfor -%}
    ) as max_utilization_pct,
    warning_threshold_pct,
    critical_threshold_pct,
    (array['ok', 'warning', 'critical', 'exceeded'])[greatest(
        {% for usage, limit, prefix in quota_limits() -%}
        case
            when {{ usage }} > {{ limit }} then 4
            when {{ usage }}::numeric * 100 >= {{ limit }}::numeric * critical_threshold_pct then 3
            when {{ usage }}::numeric * 100 >= {{ limit }}::numeric * warning_threshold_pct then 2
            when {{ usage }} < {{ limit }} then 1
        end{{ ',' if not loop.last }}
        {% endfor -%}
    )] as status,
    hours_elapsed,
    hours_remaining,
    {{ any_limit_passed() }} or {{ any_limit_passed(prefix='projected_') }} as projected_to_exceed,
    requests_are_partial,
    last_day_record is not null as includes_day_records,
    coalesce(last_day_record + interval '24 hours' > period_end, false) as is_approximate,
    data_until,
    complete_until
from projected
