select
    id as sync_id,
    provider_connection_id,
    kind,
    granularity,
    window_start,
    covered_until,
    final_before,
    completed_at
from {{ source('raw', 'sync_history') }}
where status = 'completed' and covered_until > window_start
