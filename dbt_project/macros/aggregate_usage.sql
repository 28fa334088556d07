{#-
  The measures of a rollup over `rows_of`, grouped by `grain`. Hours are aggregated from records, days from hours and day
  records, with the same meaning: NULL is unknown and stays so, distinct users are counted, percentiles are read from the
  merged latency histogram (correction 6: approximate, and flagged, where a source gave percentiles only).
  `also`: further columns, name -> aggregate of `rows_of`.
  `rows_of` has the measures below; `record_count` and `latency_request_count` are 1 and the request count for one record.
-#}
{% macro aggregate_usage(rows_of, grain, of_hours=false, also={}) -%}
    select
        {{ grain | join(',\n        ') }},
        measured.input_tokens,
        measured.output_tokens,
        measured.total_tokens,
        measured.cached_input_tokens,
        measured.cache_creation_tokens,
        measured.quantity,
        measured.request_count,
        measured.success_count,
        measured.error_count,
        measured.total_latency_ms,
        measured.latency_request_count,
        round(measured.total_latency_ms::numeric / nullif(measured.latency_request_count, 0))::bigint as avg_latency_ms,
        measured.min_latency_ms,
        measured.max_latency_ms,
        {% for quantile in (50, 95, 99) -%}
        coalesce(
            raw.latency_percentile(measured.latency_histogram, 0.{{ quantile }})::bigint,
            measured.p{{ quantile }}_latency_ms
        ) as p{{ quantile }}_latency_ms,
        {% endfor -%}
        measured.latency_is_approximate,
        measured.latency_histogram,
        {% if of_hours -%}
        raw.latency_counts(measured.latency_histogram) as latency_counts,
        {% endif -%}
        measured.estimated_cost,
        measured.unpriced_tokens,
        measured.user_ids,
        cardinality(measured.user_ids)::bigint as total_user_count,
        measured.total_tokens / nullif(measured.request_count, 0)::double precision as avg_tokens_per_request,
        measured.error_count / nullif(measured.request_count, 0)::double precision * 100 as error_rate_pct,
        measured.cached_input_tokens / nullif(measured.input_tokens, 0)::double precision * 100 as cache_hit_rate_pct,
        {% if of_hours -%}
        measured.active_hours,
        measured.peak_hourly_requests,
        measured.peak_hourly_tokens,
        {% endif -%}
        {% for name in also -%}
        measured.{{ name }},
        {% endfor -%}
        measured.record_count
    from (
        select
            {{ grain | join(',\n            ') }},
            sum(input_tokens)::bigint as input_tokens,
            sum(output_tokens)::bigint as output_tokens,
            sum(total_tokens)::bigint as total_tokens,
            sum(cached_input_tokens)::bigint as cached_input_tokens,
            sum(cache_creation_tokens)::bigint as cache_creation_tokens,
            sum(quantity) as quantity,
            sum(request_count)::bigint as request_count,
            sum(success_count)::bigint as success_count,
            sum(error_count)::bigint as error_count,
            sum(total_latency_ms)::bigint as total_latency_ms,
            sum(latency_request_count)::bigint as latency_request_count,
            min(min_latency_ms)::bigint as min_latency_ms,
            max(max_latency_ms)::bigint as max_latency_ms,
            {% for quantile in (50, 95, 99) -%}
            round(
                sum(p{{ quantile }}_latency_ms::numeric * request_count)
                / nullif(sum(request_count) filter (where p{{ quantile }}_latency_ms is not null), 0)
            )::bigint as p{{ quantile }}_latency_ms,
            {% endfor -%}
            case
                when count(latency_histogram) + count(p50_latency_ms) > 0
                    then coalesce(bool_or(latency_is_approximate), false)
            end as latency_is_approximate,
            (
                select jsonb_object_agg(bucket.number, bucket.requests)
                from (
                    select
                        entry.key as number,
                        sum(entry.value::bigint) as requests
                    from jsonb_array_elements(('[' || string_agg(latency_histogram::text, ',') || ']')::jsonb) as one (hist)
                    cross join lateral jsonb_each_text(one.hist) as entry
                    group by entry.key
                ) as bucket
            ) as latency_histogram,
            sum(estimated_cost) as estimated_cost,
            sum(unpriced_tokens)::bigint as unpriced_tokens,
            (
                select array_agg(distinct named.user_id order by named.user_id)
                from jsonb_array_elements(('[' || string_agg(to_jsonb(user_ids)::text, ',') || ']')::jsonb) as one (users)
                cross join lateral jsonb_array_elements_text(one.users) as named (user_id)
            ) as user_ids,
            {% if of_hours -%}
            case when count(*) = count(hour) then count(hour)::bigint end as active_hours,
            max(request_count) filter (where hour is not null)::bigint as peak_hourly_requests,
            max(total_tokens) filter (where hour is not null)::bigint as peak_hourly_tokens,
            {% endif -%}
            {% for name, expression in also.items() -%}
            {{ expression }} as {{ name }},
            {% endfor -%}
            sum(record_count)::bigint as record_count
        from {{ rows_of }}
        group by
            {{ grain | join(',\n            ') }}
    ) as measured
{%- endmacro %}

{#- What a rollup's row is about, apart from its time. Money and quantities are never summed over different units. -#}
{% macro usage_dimensions() -%}
    {{ return(['org_id', 'provider', 'model', 'model_family', 'request_type', 'service_type', 'team_id', 'project_id',
        'cost_center_id', 'feature', 'environment', 'currency', 'quantity_unit']) }}
{%- endmacro %}

{#- The columns that `aggregate_usage` reads, from raw records; `hour` is null for records that are days. -#}
{% macro record_measures(alias, hour) -%}
        {{ alias }}.input_tokens,
        {{ alias }}.output_tokens,
        {{ alias }}.total_tokens,
        {{ alias }}.cached_input_tokens,
        {{ alias }}.cache_creation_tokens,
        {{ alias }}.quantity,
        {{ alias }}.request_count,
        {{ alias }}.success_count,
        {{ alias }}.error_count,
        {{ alias }}.total_latency_ms,
        case when {{ alias }}.total_latency_ms is not null then {{ alias }}.request_count end as latency_request_count,
        {{ alias }}.min_latency_ms,
        {{ alias }}.max_latency_ms,
        {{ alias }}.p50_latency_ms,
        {{ alias }}.p95_latency_ms,
        {{ alias }}.p99_latency_ms,
        {{ alias }}.latency_histogram is null and {{ alias }}.p50_latency_ms is not null as latency_is_approximate,
        {{ alias }}.latency_histogram,
        {{ alias }}.estimated_cost,
        case when {{ alias }}.cost_basis = 'unpriced' then {{ alias }}.total_tokens else 0 end as unpriced_tokens,
        {{ alias }}.user_ids,
        1 as record_count,
        {{ hour }} as hour
{%- endmacro %}
