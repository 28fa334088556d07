select
    id as provider_cost_id,
    org_id,
    provider_connection_id,
    provider,
    bucket_start,
    amount,
    currency,
    line_item,
    -- A bill without a model names it as null or blank.
    nullif(trim(model), '') as model,
    cost_type,
    token_type,
    -- Whether the line is for tokens, which usage counts too, or for something else (images, seconds, searches, storage, ...).
    coalesce(
        cost_type = 'tokens',
        quantity_unit in ('tokens', '1000_tokens'),
        token_type ~ '(^|[ _])(input|output|tokens?)([ _]|$)',
        model is not null
    ) as is_for_tokens
from {{ source('raw', 'provider_costs') }}
