-- Everyone a provider names or usage names: a user who used nothing, and one whom no provider names any more.
with used as (
    select
        org_id,
        user_id,
        min(date) as first_seen,
        max(date) as last_seen
    from {{ ref('daily_usage_by_user') }}
    where user_id is not null
    group by org_id, user_id
),

names as (
    select
        org_id,
        user_identifier as user_id,
        user_display_name,
        user_metadata
    from {{ ref('int_user_names') }}
)

select
    org_id,
    user_id,
    names.user_display_name as display_name,
    names.user_metadata ->> 'email' as email,
    names.user_metadata ->> 'kind' as kind,
    used.first_seen,
    used.last_seen
from used
full outer join names using (org_id, user_id)
