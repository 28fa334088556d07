-- A view, so that a name or a reporting currency that changes later is right on every day at once.
select
    activity.id,
    activity.org_id,
    activity.user_identifier,
    names.user_display_name,
    coalesce(names.user_metadata, '{}'::jsonb) as user_metadata,
    activity.activity_date,
    activity.total_tokens,
    activity.input_tokens,
    activity.output_tokens,
    activity.cached_input_tokens as cached_tokens,
    activity.cache_creation_tokens,
    activity.request_count,
    activity.success_count,
    activity.error_count,
    (activity.cost_by_currency ->> organization.currency)::numeric as estimated_cost,
    organization.currency,
    coalesce(activity.cost_by_currency, '{}'::jsonb) as cost_by_currency,
    activity.unpriced_tokens,
    activity.model_usage,
    activity.feature_usage,
    activity.session_count,
    activity.first_activity_at,
    activity.last_activity_at,
    activity.activity_granularity,
    round(activity.total_latency_ms::numeric / nullif(activity.latency_request_count, 0))::bigint as avg_latency_ms,
    activity.total_latency_ms,
    activity.latency_request_count,
    activity.user_identifier is not null as is_attributed,
    activity.record_count,
    activity.created_at,
    activity.updated_at
from {{ ref('int_user_days') }} as activity
inner join {{ ref('stg_app__organizations') }} as organization on activity.org_id = organization.org_id
left join {{ ref('int_user_names') }} as names
    on activity.org_id = names.org_id and activity.user_identifier = names.user_identifier
