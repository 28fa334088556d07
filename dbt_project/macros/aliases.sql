{#- The canonical name that `aliases` gives to `name` of `org_id`, NULL where it has none: the organisation's own alias before one
    for all, an exact one before one with wildcards, the longest first. `filter`: a further condition on `alias`. -#}
{% macro canonical_by_alias(aliases, org_id, name, filter='true') -%}
    (
        select alias.canonical
        from {{ aliases }} as alias
        where
            (alias.org_id = {{ org_id }} or alias.org_id is null)
            and lower({{ name }}) like app.alias_pattern(alias.alias)
            and {{ filter }}
        order by
            alias.org_id is null,
            position('*' in alias.alias) > 0,
            length(alias.alias) desc,
            alias.alias
        limit 1
    )
{%- endmacro %}
