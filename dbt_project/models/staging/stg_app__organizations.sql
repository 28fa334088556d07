select
    id as org_id,
    name as org_name,
    currency
from {{ source('app', 'organizations') }}
