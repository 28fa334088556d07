{#- The dimensions of the metrics (specification 1.5): those of a rollup, apart from its units. -#}
{% macro metric_dimensions() -%}
    {{ return(usage_dimensions() | reject('in', ['currency', 'quantity_unit']) | list) }}
{%- endmacro %}
