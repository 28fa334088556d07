{#- For models of local days: the windows of `begin_changes` become whole days of the organisation's time zone (correction 5),
    written as if UTC days so that `replace_windows` finds them; `from_moment` and `to_moment` are where they begin and end. Hours
    are sought three hours wider: a clock set back at midnight has that day begin twice. -#}
{% macro local_day_windows() -%}
    create temporary table {{ this.identifier }}_local on commit drop as
    select
        merged.org_id,
        merged.provider,
        lower(merged.span)::timestamp at time zone 'UTC' as window_start,
        upper(merged.span)::timestamp at time zone 'UTC' as window_end,
        lower(merged.span) as first_date,
        upper(merged.span) as end_date,
        (lower(merged.span)::timestamp at time zone organization.time_zone) - interval '3 hours' as from_moment,
        (upper(merged.span)::timestamp at time zone organization.time_zone) + interval '3 hours' as to_moment
    from (
        select
            changed.org_id,
            changed.provider,
            unnest(range_agg(daterange(
                {{ local_date('changed.window_start', 'zone.time_zone') }},
                {{ local_date("(changed.window_end - interval '1 microsecond')", 'zone.time_zone') }} + 1
            ))) as span
        from {{ this.identifier }}_windows as changed
        inner join {{ ref('stg_app__organizations') }} as zone on changed.org_id = zone.org_id
        group by changed.org_id, changed.provider
    ) as merged
    inner join {{ ref('stg_app__organizations') }} as organization on merged.org_id = organization.org_id;
    drop table pg_temp.{{ this.identifier }}_windows;
    alter table pg_temp.{{ this.identifier }}_local rename to {{ this.identifier }}_windows;
{%- endmacro %}

{% macro local_date(moment, time_zone) -%}
    ({{ moment }} at time zone {{ time_zone }})::date
{%- endmacro %}

{#- True where local midnight lies inside the hour: zones of half and quarter hours. -#}
{% macro hour_straddles_midnight(hour, time_zone) -%}
    {{ local_date(hour, time_zone) }}
    <> {{ local_date("(" ~ hour ~ " + interval '1 hour' - interval '1 microsecond')", time_zone) }}
{%- endmacro %}

{#- `alias` has the columns of the windows. -#}
{% macro is_in_local_window(date, alias) -%}
    {{ date ~ ' >= ' ~ alias ~ '.first_date and ' ~ date ~ ' < ' ~ alias ~ '.end_date' if is_incremental() else 'true' }}
{%- endmacro %}

{#- The columns that `aggregate_usage` reads, from the hourly rollup. -#}
{% macro rollup_measures(alias, hour) -%}
    {% for column in ['input_tokens', 'output_tokens', 'total_tokens', 'cached_input_tokens', 'cache_creation_tokens', 'quantity',
        'request_count', 'success_count', 'error_count', 'total_latency_ms', 'latency_request_count', 'min_latency_ms',
        'max_latency_ms', 'p50_latency_ms', 'p95_latency_ms', 'p99_latency_ms', 'latency_is_approximate', 'latency_histogram',
        'estimated_cost', 'unpriced_tokens', 'user_ids', 'record_count'] -%}
        {{ alias }}.{{ column }},
    {% endfor -%}
        {{ hour }} as hour
{%- endmacro %}
