select
    id as org_id,
    name as org_name,
    currency,
    time_zone
from {{ source('app', 'organizations') }}
