select
    id as team_id,
    org_id,
    name as team_name,
    created_at
from {{ source('app', 'teams') }}
