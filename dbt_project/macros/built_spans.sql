{#- What the last build of all the named models changed (`--vars 'compare: everything'`: all there is), without what has changed
    again since any of them was built or has expired: organisation, provider and spans of whole UTC days, in which they must agree. -#}
{% macro built_spans(models) -%}
    select
        grouped.org_id,
        grouped.provider,
        unnest((grouped.built - grouped.later) * grouped.kept) as span
    from (
        select
            changed.org_id,
            changed.provider,
            {{ kept_records('max(changed.rows_from)') }} as kept,
            range_agg(changed.span) as built,
            coalesce(range_agg(changed.span) filter (where changed.is_later), '{}'::tstzmultirange) as later
        from (
            select
                change.org_id,
                change.provider,
                tstzrange(
                    date_trunc('day', change.window_start, 'UTC'),
                    date_trunc('day', change.window_end - interval '1 microsecond', 'UTC') + interval '24 hours'
                ) as span,
                change.change_number > progress.number_to as is_later,
                progress.rows_from
            from {{ source('raw', 'usage_changes') }} as change
            cross join (
                select
                    min(previous_change_number) as number_from,
                    min(change_number) as number_to,
                    max(rows_from) as rows_from
                from {{ source('raw', 'model_progress') }}
                where model in ('{{ models | join("', '") }}')
            ) as progress
            {% if var('compare') != 'everything' -%}
            where change.change_number > progress.number_from
            {%- endif %}
        ) as changed
        left join {{ source('raw', 'retention_horizon') }} as horizon
            on changed.org_id = horizon.org_id and changed.provider = horizon.provider
        group by changed.org_id, changed.provider
    ) as grouped
{%- endmacro %}

{#- Condition of a join to `spans`: the rows of `alias` that lie in the span, by its column of time. -#}
{% macro in_span(alias, column) -%}
    spans.org_id = {{ alias }}.org_id
    and spans.provider = {{ alias }}.provider
    and {{ alias }}.{{ column }} >= {{ window_edge('lower(spans.span)', column) }}
    and {{ alias }}.{{ column }} < {{ window_edge('upper(spans.span)', column) }}
{%- endmacro %}
