{{ config(
    materialized='incremental',
    incremental_strategy='replace_windows',
    window_column='activity_date',
    window_keys=['org_id'],
    pre_hook=["{{ begin_changes(follows='int_connection_days', width='day') }}", "{{ organization_windows(reads_records=true) }}"],
    post_hook=["{{ end_changes() }}"],
    indexes=[
        {'columns': ['id'], 'unique': true},
        {'columns': ['org_id', 'activity_date']},
        {'columns': ['org_id', 'user_identifier', 'activity_date']},
    ],
) }}
-- What each user did per UTC day, over all providers, derived anew from the records of the organisation's days that changed:
-- attributing a record twice cannot add it twice (correction 32).
with records as (
    select
        (record.timestamp at time zone 'UTC')::date as activity_date,
        record.org_id,
        record.user_id as user_identifier,
        record.model,
        coalesce(record.feature, 'untagged') as feature,
        record.currency,
        {{ entity_measures('record') }},
        case when record.granularity <> '1d' then record.timestamp end as active_at,
        case when record.granularity <> '1d' then record.granularity end as active_within,
        -- Only minutes tell sessions apart; the first of a user's day always begins one.
        record.granularity = '1m' and coalesce(
            record.timestamp - lag(record.timestamp) over (
                partition by record.org_id, record.user_id, record.day_start, record.granularity order by record.timestamp
            ) > interval '30 minutes',
            true
        ) as begins_session
    from {{ ref('int_counted_records') }} as record
    {% if is_incremental() -%}
    inner join {{ this.identifier }}_windows as changed
        on
            record.org_id = changed.org_id
            and record.day_start >= changed.window_start
            and record.day_start < changed.window_end
    {%- endif %}
),

-- Once per user and day, and once more per model, per feature and per currency of it.
summed as (
    select
        org_id,
        activity_date,
        user_identifier,
        model,
        feature,
        currency,
        grouping(model) = 0 as is_of_model,
        grouping(feature) = 0 as is_of_feature,
        grouping(currency) = 0 as is_of_currency,
        {% for column in additive_measures() -%}
        sum({{ column }})::bigint as {{ column }},
        {% endfor -%}
        sum(estimated_cost) as estimated_cost,
        sum(unpriced_tokens)::bigint as unpriced_tokens,
        count(*) as record_count,
        count(*) filter (where begins_session) as session_count,
        min(active_at) as first_activity_at,
        max(active_at) as last_activity_at,
        -- The coarsest: as text '1h' comes before '1m'.
        min(active_within) as activity_granularity
    from records
    group by org_id, activity_date, user_identifier, grouping sets ((), (model), (feature), (currency))
),

user_days as (
    select
        md5(concat_ws(' ', org_id, to_char(activity_date, 'YYYY-MM-DD'), user_identifier))::uuid as id,
        org_id,
        user_identifier,
        activity_date,
        {% for column in additive_measures() + ['unpriced_tokens', 'record_count'] -%}
        max({{ column }}) filter (where not (is_of_model or is_of_feature or is_of_currency)) as {{ column }},
        {% endfor -%}
        jsonb_object_agg(currency, estimated_cost) filter (
            where is_of_currency and estimated_cost is not null
        ) as cost_by_currency,
        jsonb_object_agg(
            model, jsonb_build_object('tokens', total_tokens, 'requests', request_count)
        ) filter (where is_of_model) as model_usage,
        jsonb_object_agg(
            feature, jsonb_build_object('tokens', total_tokens, 'requests', request_count)
        ) filter (where is_of_feature) as feature_usage,
        case
            when user_identifier is not null
                then greatest(1, max(session_count) filter (where not (is_of_model or is_of_feature or is_of_currency)))
        end as session_count,
        min(first_activity_at) as first_activity_at,
        max(last_activity_at) as last_activity_at,
        min(activity_granularity) as activity_granularity
    from summed
    group by org_id, activity_date, user_identifier
)

select
    user_days.*,
    {% if is_incremental() -%}
    -- By the unique index, row by row: a join would read the whole of history.
    coalesce((select before.created_at from {{ this }} as before where before.id = user_days.id), now()) as created_at,
    {% else -%}
    now() as created_at,
    {% endif -%}
    now() as updated_at
from user_days
