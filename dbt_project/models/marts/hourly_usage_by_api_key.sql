{{ config(
    materialized='incremental',
    incremental_strategy='replace_windows',
    window_column='hour',
    pre_hook=["{{ begin_changes(follows='int_connection_days') }}"],
    post_hook=["{{ end_changes() }}"],
    indexes=[{'columns': ['org_id', 'provider', 'hour']}, {'columns': ['org_id', 'hour']}, {'columns': ['org_id', 'api_key_id', 'hour']}],
) }}
{{ hourly_usage_by('api_key_id') }}
