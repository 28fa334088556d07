{#- Every row of `rows_of` finds its row here by `columns`. Looks at what the last build changed (`--vars 'compare: everything'`: all). -#}
{% test relationships_hold(model, rows_of, columns) %}
with spans as (
    {{ built_spans(['int_connection_model_days', rows_of]) }}
)

select distinct usage.{{ columns | join(', usage.') }}
from spans
inner join {{ ref(rows_of) }} as usage
    on {{ in_span('usage', 'date') }}
except
select {{ columns | join(', ') }}
from {{ model }}
{% endtest %}
