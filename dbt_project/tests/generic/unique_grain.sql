{#- No two rows are about the same thing; NULL is a value here. Looks at what the last build changed. The first column is time;
    `per_provider` is false where a row is about all providers. -#}
{% test unique_grain(model, columns, built_by, per_provider=true) %}
select {{ columns | join(', ') }}
from {{ model }} as built
{% if var('compare') != 'everything' -%}
where exists (
    select 1
    from {{ source('raw', 'usage_changes') }} as change
    inner join {{ source('raw', 'model_progress') }} as progress
        on progress.model = '{{ built_by }}' and change.change_number > progress.previous_change_number
    where
        change.org_id = built.org_id
        {% if per_provider -%}
        and change.provider = built.provider
        {% endif -%}
        and built.{{ columns[0] }} >= {{ window_edge("date_trunc('day', change.window_start, 'UTC')", columns[0]) }}
        and built.{{ columns[0] }} <= {{ window_edge("change.window_end", columns[0]) }}
)
{% endif -%}
group by {{ columns | join(', ') }}
having count(*) > 1
{% endtest %}
