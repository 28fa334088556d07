{{ config(
    materialized='incremental',
    incremental_strategy='replace_windows',
    window_column='date',
    window_keys=['org_id'],
    pre_hook=[
        "{{ begin_changes(follows='daily_active_entities', width='day') }}",
        "{{ trailing_windows(ref('daily_active_entities'), days=30) }}",
    ],
    post_hook=["{{ end_changes() }}"],
    indexes=[{'columns': ['org_id', 'date'], 'unique': true}],
) }}
-- Correction 7: each user once per period. A user's day counts in a period of n days from that day until n days later or
-- until the user's next day, whichever is first: those stretches do not overlap, so a running sum of their ends counts users.
with bounds as (
    select
        org_id,
        min(date) as first_usage,
        max(date) as last_usage
    from {{ ref('daily_active_entities') }}
    {% if is_incremental() -%}
    where org_id in (select changed.org_id from {{ this.identifier }}_windows as changed)
    {%- endif %}
    group by org_id
),

windows as (
    {% if is_incremental() -%}
    select
        changed.org_id,
        greatest({{ window_edge('changed.window_start', 'date') }}, bounds.first_usage) as first_date,
        least({{ window_edge('changed.window_end', 'date') }} - 1, bounds.last_usage) as last_date
    from {{ this.identifier }}_windows as changed
    inner join bounds on changed.org_id = bounds.org_id
    {%- else -%}
    select
        org_id,
        first_usage as first_date,
        last_usage as last_date
    from bounds
    {%- endif %}
),

-- Every usage has a model, so those days are the days with usage: they count as one more "user", the NULL one.
active_days as (
    select distinct
        windows.org_id,
        windows.first_date,
        windows.last_date,
        entity.date,
        entity.entity_kind = 'user' as is_user,
        case when entity.entity_kind = 'user' then entity.entity_id end as user_identifier
    from windows
    inner join {{ ref('daily_active_entities') }} as entity
        on
            windows.org_id = entity.org_id
            and entity.date >= windows.first_date - 30
            and entity.date <= windows.last_date
            and entity.entity_kind in ('user', 'model')
),

stretches as (
    select
        *,
        lead(date) over (partition by org_id, first_date, is_user, user_identifier order by date) as next_date
    from active_days
),

changes as (
    select
        stretches.org_id,
        stretches.first_date,
        stretches.is_user,
        period.name,
        edge.date,
        sum(edge.change) as change
    from stretches
    cross join
        lateral (
            values
            ('daily', stretches.date + 1),
            ('weekly', stretches.date + 7),
            ('monthly', stretches.date + 30),
            ('week_to_date', (date_trunc('week', stretches.date::timestamp) + interval '7 days')::date),
            ('month_to_date', (date_trunc('month', stretches.date::timestamp) + interval '1 month')::date)
        ) as period (name, end_date)
    cross join
        lateral (
            values
            (stretches.date, 1),
            (least(period.end_date, stretches.next_date), -1)
        ) as edge (date, change)
    group by stretches.org_id, stretches.first_date, stretches.is_user, period.name, edge.date
),

calendar as (
    select
        windows.org_id,
        windows.first_date,
        (windows.first_date - 30) + generate_series(0, windows.last_date - windows.first_date + 30) as date
    from windows
),

counted as (
    select
        calendar.org_id,
        calendar.first_date,
        calendar.date,
        who.is_user,
        period.name,
        sum(coalesce(changes.change, 0)) over (
            partition by calendar.org_id, calendar.first_date, who.is_user, period.name order by calendar.date
        ) as active
    from calendar
    cross join (values ('daily'), ('weekly'), ('monthly'), ('week_to_date'), ('month_to_date')) as period (name)
    cross join (values (true), (false)) as who (is_user)
    left join changes
        on
            calendar.org_id = changes.org_id
            and calendar.first_date = changes.first_date
            and calendar.date = changes.date
            and period.name = changes.name
            and who.is_user = changes.is_user
)

select
    date,
    org_id,
    {% for period in ['daily', 'weekly', 'monthly', 'week_to_date', 'month_to_date'] -%}
    case
        when
            max(active) filter (where name = '{{ period }}' and is_user) > 0
            or max(active) filter (where name = '{{ period }}' and not is_user) = 0
            then max(active) filter (where name = '{{ period }}' and is_user)::bigint
    end as {{ period }}_active_users,
    {% endfor -%}
    max(active) filter (where name = 'daily' and not is_user) > 0 as has_usage
from counted
where date >= first_date
group by date, org_id
