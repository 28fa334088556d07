{#- For models whose rows are about all providers of an organisation: the windows of `begin_changes`, per organisation and
    without overlaps. Runs in a hook after it; the model says `window_keys=['org_id']`. `reads_records`: such a row needs the
    records of every provider, so it stays as it is as soon as those of one have expired. -#}
{% macro organization_windows(reads_records=false) -%}
    create temporary table {{ this.identifier }}_merged on commit drop as
    select
        merged.org_id,
        lower(merged.span) as window_start,
        upper(merged.span) as window_end
    from (
        select
            touched.org_id,
            unnest(
                range_agg(tstzrange(touched.window_start, touched.window_end))
                {%- if reads_records %} * {{ kept_records() }}{% endif %}
            ) as span
        from {{ this.identifier }}_windows as touched
        left join {{ source('raw', 'retention_horizon') }} as horizon on touched.org_id = horizon.org_id
        group by touched.org_id
    ) as merged;
    drop table pg_temp.{{ this.identifier }}_windows;
    alter table pg_temp.{{ this.identifier }}_merged rename to {{ this.identifier }}_windows;
    analyze pg_temp.{{ this.identifier }}_windows;
{%- endmacro %}

{#- For a model with a row per organisation and day, from first usage to last, about the `days` up to it: a day that changed
    changes the days after it too, and where usage now begins or ends elsewhere than the model's rows do, the days between
    are written or removed. `usage`: a model with the days that have usage. -#}
{% macro trailing_windows(usage, days) -%}
    {%- if is_incremental() %}
    update pg_temp.{{ this.identifier }}_windows as changed
    set window_start = least(
            changed.window_start,
            (bounds.last_row + 1)::timestamp at time zone 'UTC',
            (bounds.last_usage + 1)::timestamp at time zone 'UTC'
        ),
        window_end = greatest(
            changed.window_end + interval '{{ 24 * days }} hours',
            bounds.first_row::timestamp at time zone 'UTC',
            bounds.first_usage::timestamp at time zone 'UTC'
        )
    from (
        select
            org.org_id,
            (select min(old.date) from {{ this }} as old where old.org_id = org.org_id) as first_row,
            (select max(old.date) from {{ this }} as old where old.org_id = org.org_id) as last_row,
            (select min(used.date) from {{ usage }} as used where used.org_id = org.org_id) as first_usage,
            (select max(used.date) from {{ usage }} as used where used.org_id = org.org_id) as last_usage
        from (select distinct org_id from {{ this.identifier }}_windows) as org
    ) as bounds
    where changed.org_id = bounds.org_id;
    {%- endif %}
    {{ organization_windows() }}
{%- endmacro %}
