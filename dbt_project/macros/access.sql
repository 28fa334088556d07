{#- Whatever dbt makes or swaps gets its readers, row-level security and owner back in the same transaction (docs/access.md). -#}
{% macro apply_grants(relation, grant_config, should_revoke=True) -%}
    {%- if grant_config -%}
    {%- do dbt.default__apply_grants(relation, grant_config, should_revoke) -%}
    {%- endif -%}
    {%- do run_query("select app.apply_access('" ~ relation ~ "'::regclass)") -%}
{%- endmacro %}
