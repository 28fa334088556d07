select
    id as quota_event_id,
    quota_id,
    period_start,
    kind,
    at as happened_at
from {{ source('app', 'quota_events') }}
