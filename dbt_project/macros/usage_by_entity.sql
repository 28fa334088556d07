{#- Usage per user or per API key. Hours are summed from the records that count, days from hours and from the day records
    that count, so that both add up to the rollups; a NULL entity is what no source attributes. -#}

{#- `entity`: a column of int_counted_records, user_id or api_key_id. -#}
{% macro hourly_usage_by(entity) -%}
    with parts as (
        select
            date_trunc('hour', record.timestamp, 'UTC') as hour,
            record.org_id,
            record.provider,
            record.{{ entity }},
            record.currency,
            {{ entity_measures('record') }},
            1 as record_count
        from {{ ref('int_counted_records') }} as record
        {% if is_incremental() -%}
        inner join {{ this.identifier }}_windows as changed
            on
                record.org_id = changed.org_id
                and record.provider = changed.provider
                and record.day_start < changed.window_end
                and record.day_start > changed.window_start - interval '24 hours'
                and record.timestamp >= changed.window_start
                and record.timestamp < changed.window_end
        {%- endif %}
        where record.granularity in ('1m', '1h')
    )

    {{ sum_by_entity(['hour', 'org_id', 'provider', entity, 'currency']) }}
{%- endmacro %}

{#- `hours`: the hourly mart of the same entity. -#}
{% macro daily_usage_by(entity, hours) -%}
    with parts as (
        select
            (hourly.hour at time zone 'UTC')::date as date,
            hourly.org_id,
            hourly.provider,
            hourly.{{ entity }},
            hourly.currency,
            {{ entity_measures('hourly') }},
            hourly.record_count
        from {{ hours }} as hourly
        {{ in_changed_windows('hourly', 'hour') }}
        union all
        select
            (record.timestamp at time zone 'UTC')::date as date,
            record.org_id,
            record.provider,
            record.{{ entity }},
            record.currency,
            {{ entity_measures('record') }},
            1 as record_count
        from {{ ref('int_counted_records') }} as record
        {{ in_changed_windows('record', 'day_start') }}
        where record.granularity = '1d'
    )

    {{ sum_by_entity(['date', 'org_id', 'provider', entity, 'currency']) }}
{%- endmacro %}

{% macro additive_measures() -%}
    {{ return(['input_tokens', 'output_tokens', 'total_tokens', 'cached_input_tokens', 'cache_creation_tokens',
        'request_count', 'success_count', 'error_count', 'total_latency_ms', 'latency_request_count']) }}
{%- endmacro %}

{% macro entity_measures(alias) -%}
    {% for column in additive_measures() + ['estimated_cost', 'unpriced_tokens'] -%}
    {{ alias }}.{{ column }}{{ ',' if not loop.last }}
    {% endfor %}
{%- endmacro %}

{#- Sums of `parts`; a measure that no part knows stays NULL. Latency is weighted by requests (correction 35). -#}
{% macro sum_by_entity(grain) -%}
    select
        {{ grain | join(',\n        ') }},
        {% for column in additive_measures() -%}
        sum({{ column }})::bigint as {{ column }},
        {% endfor -%}
        round(sum(total_latency_ms) / nullif(sum(latency_request_count), 0))::bigint as avg_latency_ms,
        sum(estimated_cost) as estimated_cost,
        sum(unpriced_tokens)::bigint as unpriced_tokens,
        sum(record_count)::bigint as record_count
    from parts
    group by
        {{ grain | join(',\n        ') }}
{%- endmacro %}
