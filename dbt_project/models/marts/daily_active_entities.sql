{{ config(
    materialized='incremental',
    incremental_strategy='replace_windows',
    window_column='date',
    pre_hook=["{{ begin_changes(follows=['daily_usage_rollup', 'daily_usage_by_api_key'], width='day') }}"],
    post_hook=["{{ end_changes() }}"],
    meta={'kept_longer_days': 31},
    indexes=[
        {'columns': ['org_id', 'provider', 'date']},
        {'columns': ['org_id', 'entity_kind', 'date', 'entity_id']},
    ],
) }}
-- Correction 7: sets of who and what was active, a day at a time, so that any period can count each once.
with days as (
    select daily.*
    from {{ ref('daily_usage_rollup') }} as daily
    {{ in_changed_windows('daily', 'date') }}
),

key_days as (
    select daily.*
    from {{ ref('daily_usage_by_api_key') }} as daily
    {{ in_changed_windows('daily', 'date') }}
    where daily.api_key_id is not null
)

select distinct
    days.date,
    days.org_id,
    days.provider,
    'user' as entity_kind,
    unnest(days.user_ids) as entity_id
from days
union all
select distinct
    days.date,
    days.org_id,
    days.provider,
    entity.entity_kind,
    entity.entity_id
from days
cross join lateral (values ('model', days.model), ('feature', days.feature)) as entity (entity_kind, entity_id)
where entity.entity_id is not null
union all
select distinct
    date,
    org_id,
    provider,
    'api_key' as entity_kind,
    api_key_id as entity_id
from key_days
