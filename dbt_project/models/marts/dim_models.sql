-- A view, so that an alias holds for all of history at once. Usage and bills keep the original spelling; they join on
-- (org_id, provider, model).
with spelled as (
    select
        org_id,
        provider,
        model,
        max(model_family) as model_family,
        min(date) as first_seen,
        max(date) as last_seen,
        sum(record_count) > 0 as is_used,
        sum(bill_line_count) > 0 as is_billed
    from {{ ref('int_connection_model_days') }}
    where model is not null
    group by org_id, provider, model
),

named as (
    select
        spelled.*,
        {{ canonical_by_alias(
            source('app', 'model_aliases'), 'spelled.org_id', 'spelled.model',
            '(alias.provider = spelled.provider or alias.provider is null)',
        ) }} as by_alias
    from spelled
)

select
    org_id,
    provider,
    model,
    coalesce(by_alias, app.canonical_model(provider, model), model) as canonical_model,
    by_alias is not null as is_alias,
    coalesce(
        model_family,
        max(model_family) over (
            partition by org_id, provider, coalesce(by_alias, app.canonical_model(provider, model), model)
        )
    ) as model_family,
    first_seen,
    last_seen,
    is_used,
    is_billed
from named
