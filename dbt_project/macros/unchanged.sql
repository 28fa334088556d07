{#-
  What did not change is not written again (docs/decisions/0004). dbt would drop and make every view at every build, with
  exclusive locks and with `cascade` to whatever people built on it, and would comment every column again.
-#}

{#- dbt's own materialization, unless the view in the database was made from the same SQL and descriptions. -#}
{% materialization view, adapter='postgres' %}
    {%- set existing = load_cached_relation(this) -%}
    {%- if existing is not none and existing.is_view and not should_full_refresh() and not pre_hooks and not post_hooks
        and view_fingerprint_of(existing) == view_fingerprint(sql) -%}
        {%- call noop_statement('main', 'VIEW UNCHANGED') -%}{{ sql }}{%- endcall -%}
        {{ return({'relations': [existing]}) }}
    {%- endif -%}
    {{ return(dbt.materialization_view_default()) }}
{% endmaterialization %}

{#- The view and, as the comment of its rule (which goes when the view goes), what it was made from. -#}
{% macro postgres__create_view_as(relation, sql) -%}
    {{ dbt.default__create_view_as(relation, sql) }}
    comment on rule "_RETURN" on {{ relation }} is '{{ view_fingerprint(sql) }}';
{%- endmacro %}

{% macro view_fingerprint(sql) -%}
    {%- set columns = [] -%}
    {%- for column in model.columns.values() -%}
        {%- do columns.append([column.name, column.data_type | default(none), column.description]) -%}
    {%- endfor -%}
    {%- set contract = config.get('contract') -%}
    {{ return(local_md5(tojson([sql, model.description, columns, contract.enforced | default(false), config.get('grants')]))) }}
{%- endmacro %}

{% macro view_fingerprint_of(relation) -%}
    {%- set found = run_query(
        "select obj_description(oid, 'pg_rewrite') as fingerprint from pg_catalog.pg_rewrite"
        ~ " where ev_class = to_regclass('" ~ relation ~ "') and rulename = '_RETURN'"
    ) -%}
    {{ return(found.rows[0][0] if found.rows else none) }}
{%- endmacro %}

{#- Descriptions reach the database's comments when one of them differs from the comment that stands there. -#}
{% macro postgres__persist_docs(relation, model, for_relation, for_columns) -%}
    {%- set found = run_query(
        "select coalesce(attribute.attname, ''), comment.description from pg_catalog.pg_description as comment"
        ~ " left join pg_catalog.pg_attribute as attribute on comment.objoid = attribute.attrelid and comment.objsubid = attribute.attnum"
        ~ " and comment.objsubid > 0 where comment.classoid = 'pg_class'::regclass and comment.objoid = '" ~ relation ~ "'::regclass"
    ) -%}
    {%- set comments, described = {}, {} -%}
    {%- for row in found.rows -%}{%- do comments.update({row[0]: row[1]}) -%}{%- endfor -%}
    {%- if for_relation and config.persist_relation_docs() -%}{%- do described.update({'': model.description}) -%}{%- endif -%}
    {%- if for_columns and config.persist_column_docs() -%}
        {%- for column in model.columns.values() -%}{%- do described.update({column.name: column.description}) -%}{%- endfor -%}
    {%- endif -%}
    {%- for name, description in described.items() if description != comments.get(name, '') -%}
        {%- if loop.first -%}{%- do dbt.default__persist_docs(relation, model, for_relation, for_columns) -%}{%- endif -%}
    {%- endfor -%}
{%- endmacro %}
