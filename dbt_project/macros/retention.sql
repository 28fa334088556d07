{#-
  What has expired stays in the rollups as it is (docs/decisions/0005). raw.retention_horizon says from when on an
  organisation's records of a provider are complete, raw.model_progress.rows_from from when on a rollup's rows are.
-#}

{#- Retention moves a horizon only while no model runs: each holds this lock, shared, until it commits. -#}
{% macro hold_retention() -%}
    select pg_advisory_xact_lock_shared(7265004);
{%- endmacro %}

{% macro rows_from() %}current_setting('tokentra.rows_from')::timestamptz{% endmacro %}
{% macro inputs_from() %}current_setting('tokentra.inputs_from')::timestamptz{% endmacro %}

{#- In a query grouped by what `horizon` is joined on: the time that may be computed anew. `also_from`: not before that either. -#}
{% macro kept_records(also_from=none) -%}
    tstzmultirange(tstzrange(greatest(max(horizon.kept_from), {{ also_from or "'-infinity'" }}), null))
{%- endmacro %}

{#- The whole hours (or UTC days) around a window. Where a rollup's hours have expired and its records have not, its whole
    day is computed anew, because a day is the sum of all of its hours. -#}
{% macro whole_buckets(width, window_start, window_end) -%}
    {%- set last = window_end ~ " - interval '1 microsecond'" -%}
    {%- if width == 'day' -%}
    tstzrange(date_trunc('day', {{ window_start }}, 'UTC'), date_trunc('day', {{ last }}, 'UTC') + interval '24 hours')
    {%- else -%}
    tstzrange(
        date_trunc(case when {{ window_start }} < {{ rows_from() }} then 'day' else 'hour' end, {{ window_start }}, 'UTC'),
        case
            when {{ last }} < {{ rows_from() }} then date_trunc('day', {{ last }}, 'UTC') + interval '24 hours'
            else date_trunc('hour', {{ last }}, 'UTC') + interval '1 hour'
        end
    )
    {%- endif -%}
{%- endmacro %}

{#- After dbt has swapped a table that was built anew for the old one: rows that cannot be computed any more come from the old
    one, columns that are new in them NULL. Correction 4: no history vanishes at a refresh. -#}
{% macro keep_expired_history() -%}
    {%- set backup = make_backup_relation(this, 'table') -%}
    {%- set found = run_query("select to_regclass('" ~ backup ~ "') is not null as is_there") -%}
    {%- if found.rows[0][0] -%}
    {%- set old_names = adapter.get_columns_in_relation(backup) | map(attribute='name') | list -%}
    {%- set columns = adapter.get_columns_in_relation(this) | map(attribute='name') | select('in', old_names) | map('tojson') | join(', ') -%}
    {%- set column = config.require('window_column') -%}
    {%- set keys = config.get('window_keys', ['org_id', 'provider']) -%}
    create temporary table {{ this.identifier }}_kept on commit drop as
    select
        seen.{{ keys | join(', seen.') }},
        greatest(max(horizon.kept_from), {{ inputs_from() }}) as kept_from
    from (select distinct {{ keys | join(', ') }} from {{ backup }}) as seen
    left join {{ source('raw', 'retention_horizon') }} as horizon
        on {% for key in keys %}seen.{{ key }} = horizon.{{ key }}{{ ' and ' if not loop.last }}{% endfor %}
    group by seen.{{ keys | join(', seen.') }};
    delete from {{ this }} as rebuilt
    using {{ this.identifier }}_kept as kept
    where {% for key in keys %}rebuilt.{{ key }} = kept.{{ key }} and {% endfor -%}
        rebuilt.{{ column }} < {{ window_edge('kept.kept_from', column) }};
    insert into {{ this }} ({{ columns }})
    select {{ columns }}
    from {{ backup }} as old
    inner join {{ this.identifier }}_kept as kept using ({{ keys | join(', ') }})
    where old.{{ column }} < {{ window_edge('kept.kept_from', column) }};
    {%- endif -%}
{%- endmacro %}
