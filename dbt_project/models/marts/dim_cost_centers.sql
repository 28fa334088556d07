select
    id as cost_center_id,
    org_id,
    name as cost_center_name,
    created_at
from {{ source('app', 'cost_centers') }}
