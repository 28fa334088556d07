select
    id as provider_connection_id,
    org_id,
    name as connection_name,
    provider,
    source
from {{ source('app', 'provider_connections') }}
