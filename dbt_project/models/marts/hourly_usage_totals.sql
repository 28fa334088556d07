{{ config(
    materialized='incremental',
    incremental_strategy='replace_windows',
    window_column='hour',
    pre_hook=["{{ begin_changes(follows='hourly_usage_rollup') }}"],
    post_hook=["{{ end_changes() }}"],
    indexes=[{'columns': ['org_id', 'provider', 'hour']}, {'columns': ['org_id', 'hour']}],
) }}
-- What a trend by hour needs and no more: a hundredth of the rollup's rows, none of its histograms and users.
with parts as (
    select
        hourly.hour,
        hourly.org_id,
        hourly.provider,
        hourly.currency,
        {{ entity_measures('hourly') }},
        hourly.record_count
    from {{ ref('hourly_usage_rollup') }} as hourly
    {{ in_changed_windows('hourly', 'hour') }}
)

{{ sum_by_entity(['hour', 'org_id', 'provider', 'currency']) }}
