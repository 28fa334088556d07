-- Correction 11: sources are not summed, their difference is shown. The source that counts beside each other one, per UTC day
-- and canonical model, on the days that the other source speaks of.
{%- set measures = ['input_tokens', 'output_tokens', 'total_tokens', 'request_count'] %}
with names as materialized (
    select
        org_id,
        provider,
        model,
        canonical_model
    from {{ ref('dim_models') }}
),

pairs as (
    select distinct
        authority.org_id,
        authority.provider,
        authority.source as authoritative_source,
        connection.source as other_source
    from {{ ref('int_usage_authority') }} as authority
    inner join {{ ref('stg_app__provider_connections') }} as connection
        on
            authority.org_id = connection.org_id
            and authority.provider = connection.provider
            and authority.source <> connection.source
),

-- What the two sources of a pair say, and which days they cover.
said as (
    select
        days.date,
        pairs.*,
        connection.source = pairs.authoritative_source as is_counted,
        names.canonical_model as model,
        {% for measure in measures -%}
        days.{{ measure }},
        {% endfor -%}
        days.is_provisional,
        null::boolean as is_complete
    from {{ ref('int_connection_model_days') }} as days
    inner join {{ ref('stg_app__provider_connections') }} as connection
        on days.provider_connection_id = connection.provider_connection_id
    inner join pairs
        on
            days.org_id = pairs.org_id
            and days.provider = pairs.provider
            and connection.source in (pairs.authoritative_source, pairs.other_source)
    inner join names
        on days.org_id = names.org_id and days.provider = names.provider and days.model = names.model
    where days.record_count > 0
    union all
    select
        (connection_day.day_start at time zone 'UTC')::date as date,
        pairs.*,
        connection.source = pairs.authoritative_source as is_counted,
        null as model,
        {% for measure in measures -%}
        null as {{ measure }},
        {% endfor -%}
        null as is_provisional,
        connection_day.is_complete
    from {{ ref('int_connection_days') }} as connection_day
    inner join {{ ref('stg_app__provider_connections') }} as connection
        on connection_day.provider_connection_id = connection.provider_connection_id
    inner join pairs
        on
            connection_day.org_id = pairs.org_id
            and connection_day.provider = pairs.provider
            and connection.source in (pairs.authoritative_source, pairs.other_source)
),

days as (
    select
        *,
        coalesce(
            bool_and(coalesce(is_complete, true)) filter (where is_counted) over of_day, false
        ) as is_authoritative_complete,
        coalesce(
            bool_and(coalesce(is_complete, true)) filter (where not is_counted) over of_day, false
        ) as is_other_complete,
        bool_or(not is_counted) over of_day as is_day_of_other
    from said
    window of_day as (partition by org_id, provider, other_source, date)
),

models as (
    select
        date,
        org_id,
        provider,
        model,
        authoritative_source,
        other_source,
        is_authoritative_complete,
        is_other_complete,
        {% for measure in measures -%}
        sum({{ measure }}) filter (where is_counted) as counted_{{ measure }},
        sum({{ measure }}) filter (where not is_counted) as beside_{{ measure }},
        {% endfor -%}
        bool_or(is_counted) as is_in_authoritative,
        bool_or(not is_counted) as is_in_other,
        bool_or(is_provisional) as is_provisional
    from days
    where model is not null and is_day_of_other
    group by
        date, org_id, provider, model, authoritative_source, other_source, is_authoritative_complete, is_other_complete
),

-- Nothing said is nothing used only where the source covers the day.
known as (
    select
        {% for measure in measures -%}
        case when is_in_authoritative then counted_{{ measure }} when is_authoritative_complete then 0 end as counted_{{ measure }},
        case when is_in_other then beside_{{ measure }} when is_other_complete then 0 end as beside_{{ measure }},
        {% endfor -%}
        date,
        org_id,
        provider,
        model,
        authoritative_source,
        other_source,
        is_authoritative_complete,
        is_other_complete,
        is_in_authoritative,
        is_in_other,
        is_provisional
    from models
)

select
    date,
    org_id,
    provider,
    model,
    authoritative_source,
    other_source,
    {% for measure in measures -%}
    counted_{{ measure }}::bigint as authoritative_{{ measure }},
    beside_{{ measure }}::bigint as other_{{ measure }},
    {% endfor -%}
    {% for measure, name in [('total_tokens', 'token'), ('request_count', 'request')] -%}
    (counted_{{ measure }} - beside_{{ measure }})::bigint as {{ name }}_difference,
    (counted_{{ measure }} - beside_{{ measure }})
    / nullif(counted_{{ measure }}, 0)::double precision * 100 as {{ name }}_difference_pct,
    {% endfor -%}
    is_provisional,
    case
        when not (is_other_complete and is_authoritative_complete) then 'missing_sync'
        when is_provisional then 'provisional'
        when not is_in_other then 'only_in_authoritative'
        when not is_in_authoritative then 'only_in_other'
    end as reason
from known
