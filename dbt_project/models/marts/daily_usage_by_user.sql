{{ config(
    materialized='incremental',
    incremental_strategy='replace_windows',
    window_column='date',
    pre_hook=["{{ begin_changes(follows='hourly_usage_by_user', width='day') }}"],
    post_hook=["{{ end_changes() }}"],
    indexes=[{'columns': ['org_id', 'provider', 'date']}, {'columns': ['org_id', 'date']}, {'columns': ['org_id', 'user_id', 'date']}],
) }}
{{ daily_usage_by('user_id', ref('hourly_usage_by_user')) }}
