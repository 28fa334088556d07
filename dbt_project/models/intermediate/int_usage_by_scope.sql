-- Usage as quotas count it, once per kind of scope (correction 28): by the hour, and day records, which are in no hour, at the
-- start of their day. A reader names one scope_type and scope_value; over all of them the same usage appears several times.
{% set scopes = [
    ('organization', 'org_id::text', ref('hourly_usage_rollup')),
    ('team', 'team_id::text', ref('hourly_usage_rollup')),
    ('project', 'project_id::text', ref('hourly_usage_rollup')),
    ('feature', 'feature', ref('hourly_usage_rollup')),
    ('user', 'user_id', ref('hourly_usage_by_user')),
    ('api_key', 'api_key_id', ref('hourly_usage_by_api_key')),
] -%}
{% for scope_type, scope_value, hours in scopes -%}
select
    '{{ scope_type }}' as scope_type,
    hourly.{{ scope_value }} as scope_value,
    hourly.org_id,
    hourly.hour as counted_at,
    false as is_day_record,
    hourly.input_tokens,
    hourly.output_tokens,
    hourly.total_tokens,
    hourly.request_count,
    hourly.currency,
    hourly.estimated_cost
from {{ hours }} as hourly
where hourly.{{ scope_value.split('::')[0] }} is not null
union all
select
    '{{ scope_type }}' as scope_type,
    record.{{ scope_value }} as scope_value,
    record.org_id,
    record.timestamp as counted_at,
    true as is_day_record,
    record.input_tokens,
    record.output_tokens,
    record.total_tokens,
    record.request_count,
    record.currency,
    record.estimated_cost
from {{ ref('int_counted_records') }} as record
where record.granularity = '1d' and record.{{ scope_value.split('::')[0] }} is not null
{% if not loop.last -%}
union all
{% endif -%}
{% endfor -%}
