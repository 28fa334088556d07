select
    quota_id,
    period_start,
    kind,
    events as event_count
from {{ source('app', 'quota_event_counts') }}
