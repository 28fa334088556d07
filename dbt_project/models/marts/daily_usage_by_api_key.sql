{{ config(
    materialized='incremental',
    incremental_strategy='replace_windows',
    window_column='date',
    pre_hook=["{{ begin_changes(follows='hourly_usage_by_api_key', width='day') }}"],
    post_hook=["{{ end_changes() }}"],
    indexes=[{'columns': ['org_id', 'provider', 'date']}, {'columns': ['org_id', 'date']}, {'columns': ['org_id', 'api_key_id', 'date']}],
) }}
{{ daily_usage_by('api_key_id', ref('hourly_usage_by_api_key')) }}
