with spelled as (
    select
        org_id,
        environment,
        min(date) as first_seen,
        max(date) as last_seen
    from {{ ref('daily_usage_rollup') }}
    where environment is not null
    group by org_id, environment
)

select
    org_id,
    environment,
    coalesce(
        {{ canonical_by_alias(source('app', 'environment_aliases'), 'spelled.org_id', 'spelled.environment') }},
        lower(trim(environment))
    ) as canonical_environment,
    first_seen,
    last_seen
from spelled
