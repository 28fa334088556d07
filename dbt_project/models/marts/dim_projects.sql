select
    id as project_id,
    org_id,
    name as project_name,
    team_id,
    created_at
from {{ source('app', 'projects') }}
