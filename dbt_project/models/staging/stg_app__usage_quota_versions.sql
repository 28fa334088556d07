-- The states of quotas as of the moment that is asked about; what came later has not happened yet.
select
    quota_id,
    version as quota_version,
    valid_from,
    case when valid_to <= {{ quota_moment() }} then valid_to end as valid_to,
    org_id,
    name as quota_name,
    scope_type,
    case scope_type
        when 'organization' then org_id::text
        when 'team' then team_id::text
        when 'project' then project_id::text
        when 'user' then user_identifier
        when 'api_key' then api_key_id
        when 'feature' then feature
    end as scope_value,
    token_limit,
    request_limit,
    input_token_limit,
    output_token_limit,
    period_type,
    period_reset_day,
    period_reset_hour,
    enforcement_mode,
    warning_threshold_pct,
    critical_threshold_pct,
    is_active
from {{ source('app', 'usage_quota_versions') }}
where valid_from <= {{ quota_moment() }}
