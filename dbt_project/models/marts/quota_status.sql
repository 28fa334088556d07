select *
from {{ ref('int_quota_status') }}
where is_active
