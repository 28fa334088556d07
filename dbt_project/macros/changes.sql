{#-
  How the incremental models follow raw.usage_changes (docs/decisions/0002-changes.md). The log's numbers appear in commit
  order, so "everything up to n" is complete once n is seen. Each model's run is one transaction: `begin_changes` takes the
  model's lock and fixes the numbers (from, to] and the windows that they touch; the model recomputes those windows;
  `end_changes` remembers `to`. A change that commits meanwhile has a larger number and is taken by the next build.
  What has expired (raw.retention_horizon) is in no window: see macros/retention.sql.
-#}

{#- `follows`: the model whose progress bounds this one, or several (the slowest does); none: the log's own newest number. -#}
{% macro begin_changes(follows=none, width='hour', windows=true) -%}
    {{ hold_retention() }}
    select
        pg_advisory_xact_lock(hashtextextended('tokentra model {{ this.identifier }}', 0)),
        set_config('tokentra.from', '0', true),
        set_config('tokentra.inputs_from', '-infinity', true);
    select
        set_config('tokentra.rows_from', coalesce(max(rows_from), '-infinity')::text, true),
        set_config('tokentra.from', coalesce(max(change_number), 0)::text, true)
    from {{ source('raw', 'model_progress') }}
    where model = '{{ this.identifier }}';
    select
        set_config('tokentra.to', coalesce({{ 'min' if follows else 'max' }}(change_number), 0)::text, true)
    {% if follows -%}
        , set_config('tokentra.inputs_from', coalesce(max(rows_from), '-infinity')::text, true)
    {%- set followed = [follows] if follows is string else follows -%}
    from {{ source('raw', 'model_progress') }} where model in ('{{ followed | join("', '") }}');
    {%- else -%}
    from {{ source('raw', 'usage_changes') }};
    {%- endif %}
    {% if windows -%}
    drop table if exists pg_temp.{{ this.identifier }}_windows;
    create temporary table {{ this.identifier }}_windows on commit drop as
    {{ changed_windows(width, follows) }};
    {% if is_incremental() -%}
    -- Few windows change; the planner is told how many, and to prefer key ranges to whole tables (docs/decisions/0004).
    analyze {{ this.identifier }}_windows;
    select set_config('enable_seqscan', 'off', true);
    {%- endif %}
    {%- endif %}
{%- endmacro %}

{#- Whole hours (or UTC days) that changed, per organisation and provider, without overlaps. A connection's day whose
    granularity was decided anew counts whole. -#}
{% macro changed_windows(width, follows=none) -%}
    select
        merged.org_id,
        merged.provider,
        lower(merged.span) as window_start,
        upper(merged.span) as window_end
    from (
        select
            touched.org_id,
            touched.provider,
            unnest(range_agg({{ whole_buckets(width, 'touched.window_start', 'touched.window_end') }}) * {{ kept_records() }}) as span
        from (
            select
                org_id,
                provider,
                window_start,
                window_end
            from {{ source('raw', 'usage_changes') }}
            where change_number > {{ changes_from() }} and change_number <= {{ changes_to() }}
            {% if follows %}
            union all
            select
                connection.org_id,
                connection.provider,
                connection_day.day_start,
                connection_day.day_start + interval '24 hours'
            from {{ ref('int_connection_days') }} as connection_day
            inner join {{ ref('stg_app__provider_connections') }} as connection
                on connection_day.provider_connection_id = connection.provider_connection_id
            where connection_day.decided_at > {{ changes_from() }}
            {% endif %}
        ) as touched
        left join {{ source('raw', 'retention_horizon') }} as horizon
            on touched.org_id = horizon.org_id and touched.provider = horizon.provider
        group by touched.org_id, touched.provider
    ) as merged
{%- endmacro %}

{% macro changes_from() %}current_setting('tokentra.from')::bigint{% endmacro %}
{% macro changes_to() %}current_setting('tokentra.to')::bigint{% endmacro %}

{% macro end_changes() -%}
    insert into {{ source('raw', 'model_progress') }} (model, previous_change_number, change_number, updated_at)
    values (
        '{{ this.identifier }}',
        {{ changes_from() if is_incremental() else 0 }},
        {{ changes_to() }},
        now()
    )
    on conflict (model) do update
    set previous_change_number = excluded.previous_change_number,
        change_number = excluded.change_number,
        updated_at = excluded.updated_at
        {%- if not is_incremental() %},
        rows_from = nullif({{ inputs_from() }}, '-infinity')
        {%- endif %};
    {{ keep_expired_history() if should_full_refresh() }}
{%- endmacro %}

{#- Incremental strategy: what stood in the changed windows goes, what was recomputed comes. `window_column` says which
    column of the model lies in the windows, `window_keys` whose windows they are. -#}
{% macro get_incremental_replace_windows_sql(arg_dict) -%}
    {%- set target, source_table = arg_dict['target_relation'], arg_dict['temp_relation'] -%}
    {%- set columns = arg_dict['dest_columns'] | map(attribute='quoted') | join(', ') -%}
    {%- set column = config.require('window_column') -%}
    delete from {{ target }} as old
    using {{ this.identifier }}_windows as changed
    where {% for key in config.get('window_keys', ['org_id', 'provider']) -%}
        old.{{ key }} = changed.{{ key }}
        and {% endfor -%}
        old.{{ column }} >= {{ window_edge('changed.window_start', column) }}
        and old.{{ column }} < {{ window_edge('changed.window_end', column) }};
    insert into {{ target }} ({{ columns }})
    select {{ columns }} from {{ source_table }}
{%- endmacro %}

{% macro window_edge(moment, column) -%}
    {{ "(" ~ moment ~ " at time zone 'UTC')::date" if column.endswith('date') else moment }}
{%- endmacro %}

{#- In an incremental model: only the rows of `alias` that lie in the changed windows, by their column of time. -#}
{% macro in_changed_windows(alias, column) -%}
    {% if is_incremental() -%}
    inner join {{ this.identifier }}_windows as changed
        on
            {{ alias }}.org_id = changed.org_id
            and {{ alias }}.provider = changed.provider
            and {{ alias }}.{{ column }} >= {{ window_edge('changed.window_start', column) }}
            and {{ alias }}.{{ column }} < {{ window_edge('changed.window_end', column) }}
    {%- endif %}
{%- endmacro %}
